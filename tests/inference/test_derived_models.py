"""Orthogonalised models on the real weights: what they compute, and what of them survives."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.datasets import load
from inference.derived.comparison import PROMPTS, logit_differences
from inference.derived.job import orthogonalization
from inference.derived.models import DerivedModels, ModelExistsError, ModelsFullError
from inference.derived.orthogonalize import orthogonalized, writers
from inference.derived.recipe import Recipe, recipe_of
from inference.engine import Engine
from inference.jobs.chore import JobError
from inference.kv import KvCache
from inference.limits import DERIVED_MODELS_MAX
from inference.loading import LoadedModel
from inference.model import Model, Span
from inference.prepare import find_gguf
from inference.steering.combining import basis
from inference.steering.safetensors_file import FileError
from inference.steering.vector import Kind, StoredVector, direction
from inference.weights import open_source, read_tensors

MODEL_ID = "smollm2-135m-instruct"


def a_direction(vector_id: str, *, seed: int, layer: int = 12) -> StoredVector:
    values = torch.randn(576, generator=torch.Generator().manual_seed(seed))
    return direction(id=vector_id, values={layer: values}, metadata={"model_digest": None})


def finished(work) -> Any:
    fractions = []
    try:
        while True:
            fractions.append(next(work))
    except StopIteration as end:
        assert fractions == sorted(fractions)
        assert 0 <= fractions[0] < fractions[-1] <= 1
        return end.value


@pytest.fixture(scope="module")
def vectors() -> list[StoredVector]:
    return [a_direction("a", seed=1), a_direction("b", seed=2)]


@pytest.fixture(scope="module")
def rows(vectors) -> torch.Tensor:
    return basis([vector.tensors["direction.12"] for vector in vectors]).float()


@pytest.fixture(scope="module")
def derived(loaded: LoadedModel, model_directory: Path, rows) -> Model:
    return finished(orthogonalized(loaded.model, model_directory, rows))


def test_hooks_and_orthogonalised_weights_agree_within_1e_4(loaded: LoadedModel, derived: Model, vectors):
    chats = [
        loaded.template.render([{"role": "user", "content": text}]) for text in load("harmfulness").negative.test[:6]
    ]
    prompts = [*PROMPTS, *chats]
    differences = list(logit_differences(loaded, derived, vectors=vectors, prompts=prompts))
    print(  # noqa: T201 - shown with -s
        f"logits differ by {max(d.at_end for d in differences):.1e} at the end of a prompt, "
        f"by {max(d.anywhere for d in differences):.1e} anywhere"
    )
    assert len(differences) == 10
    assert max(difference.at_end for difference in differences) <= 1e-4
    # The first tokens have activations of some thousand; there float32 itself differs by 1e-4 between one model run
    # in one piece and in two.
    assert max(difference.anywhere for difference in differences) <= 1e-3


def test_the_directions_matter_so_the_agreement_says_something(loaded: LoadedModel, derived: Model):
    ids = loaded.tokenizer.encode("The capital of France is", add_special_tokens=True)
    assert float((logits(loaded.model, ids) - logits(derived, ids)).abs().max()) > 0.05


def test_an_output_head_that_stayed_tied_would_be_wrong(loaded: LoadedModel, model_directory: Path, rows, derived):
    source = open_source(model_directory)
    tensors = dict(source.tensors)
    for name in writers(loaded.config):
        wide = tensors[name].double()
        part = rows.double()
        embeds = name == "model.embed_tokens.weight"
        tensors[name] = (wide - (wide @ part.T) @ part if embeds else wide - part.T @ (part @ wide)).float()
    tied = Model(loaded.config, tensors, dtype=torch.float32, device=torch.device("cpu"))
    untied_config = dataclasses.replace(loaded.config, tie_word_embeddings=False)
    tensors["lm_head.weight"] = source.tensors["model.embed_tokens.weight"]
    untied = Model(untied_config, tensors, dtype=torch.float32, device=torch.device("cpu"))
    ids = loaded.tokenizer.encode("The capital of France is", add_special_tokens=True)
    assert torch.equal(logits(untied, ids), logits(derived, ids))  # and sharing changes nothing
    assert float((logits(tied, ids) - logits(derived, ids)).abs().max()) > 0.3


def logits(model: Model, ids: list[int]) -> torch.Tensor:
    cache = KvCache(model.config, capacity=len(ids), dtype=model.dtype, device=model.device)
    return model.logits(torch.tensor(ids), [Span(cache, len(ids))], every=True)


def test_no_block_writes_along_the_directions(loaded: LoadedModel, derived: Model, rows):
    ids = torch.tensor(loaded.tokenizer.encode("Rain fell on the quiet square.", add_special_tokens=True))
    for model, bound in ((derived, 1e-3), (loaded.model, None)):
        cache = KvCache(model.config, capacity=len(ids), dtype=model.dtype, device=model.device)
        hidden = model.block_output(ids, cache, layer=29)
        along = float((hidden @ rows.T).abs().max())
        assert along < bound if bound else along > 0.5


def test_the_base_model_is_left_as_it_was(loaded: LoadedModel, derived: Model, model_directory: Path):
    ids = loaded.tokenizer.encode("Two and two are", add_special_tokens=True)
    fresh = Model(loaded.config, open_source(model_directory).tensors, dtype=torch.float32, device=torch.device("cpu"))
    assert torch.equal(logits(fresh, ids), logits(loaded.model, ids))
    assert loaded.model.config.tie_word_embeddings
    assert not derived.config.tie_word_embeddings


def test_weights_are_read_again_from_a_gguf_file_as_well(model_directory: Path):
    names = frozenset({"model.layers.3.self_attn.o_proj.weight", "model.layers.29.mlp.down_proj.weight"})
    from_gguf, from_directory = (dict(read_tensors(path, names)) for path in (find_gguf(), model_directory))
    assert from_gguf.keys() == from_directory.keys() == names
    assert all(torch.equal(from_gguf[name], from_directory[name]) for name in names)


def a_recipe(loaded: LoadedModel, rows: torch.Tensor, model_id: str = "m") -> Recipe:
    return Recipe(
        id=model_id,
        base_digest_sha256=loaded.digest_sha256,
        basis=rows,
        vectors=(("a", 12, "0" * 64),),
        created_s=1_800_000_000,
        logit_difference_max=2e-5,
    )


def test_a_recipe_is_read_back_as_written_and_a_changed_one_is_refused(loaded: LoadedModel, rows):
    recipe = a_recipe(loaded, rows)
    content = recipe.file_content()
    again = recipe_of(content, model_id="m")
    assert (again.provenance(), again.created_s) == (recipe.provenance(), recipe.created_s)
    assert torch.equal(again.basis, rows)
    assert content == again.file_content()
    place = len(content) - 3  # a number of the basis
    for broken in (
        content[:-4],
        content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :],
        b"",
        b"{}" * 40,
    ):
        with pytest.raises(FileError):
            recipe_of(broken, model_id="m")
    doubled = dataclasses.replace(recipe, basis=2 * rows)
    with pytest.raises(FileError, match="orthonormal"):
        recipe_of(doubled.file_content(), model_id="m")


def open_models(loaded: LoadedModel, path: Path, state: Path) -> DerivedModels:
    def engine_for(model: Model) -> Engine:
        return Engine(model, batch_rows_max=2, kv_tokens_max=512)

    return DerivedModels(state, base=loaded, path=path, engine_for=engine_for)


def test_derived_models_survive_a_restart_bit_for_bit_and_stay_away_once_deleted(
    loaded: LoadedModel, model_directory: Path, tmp_path: Path, vectors
):
    models = open_models(loaded, model_directory, tmp_path)
    result = finished(orthogonalization(model_id="quiet", vectors=vectors, derived=models, clock=lambda: 1.8e9))
    assert result == {"matrices_changed": 61, "logit_difference_max": pytest.approx(0, abs=1e-4)}
    ids = loaded.tokenizer.encode("Once upon a time", add_special_tokens=True)
    before = logits(models.get("quiet").loaded.model, ids)
    (tmp_path / "half.safetensors.partial").write_bytes(b"torn")
    (tmp_path / "bad.safetensors").write_bytes(b"not a recipe")
    reopened = open_models(loaded, model_directory, tmp_path)
    assert [model.recipe.id for model in reopened.all()] == ["quiet"]
    assert torch.equal(logits(reopened.get("quiet").loaded.model, ids), before)
    assert reopened.get("quiet").recipe.provenance() == models.get("quiet").recipe.provenance()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quarantine", "quiet.safetensors"]
    assert (tmp_path / "quiet.safetensors").stat().st_size < 10_000  # a recipe, no weights
    assert reopened.remove("quiet")
    assert not reopened.remove("quiet")
    assert open_models(loaded, model_directory, tmp_path).all() == []


def test_a_recipe_of_another_base_is_left_out_but_kept(
    loaded: LoadedModel, model_directory: Path, tmp_path: Path, rows
):
    recipe = dataclasses.replace(a_recipe(loaded, rows), base_digest_sha256="f" * 64)
    (tmp_path / "m.safetensors").write_bytes(recipe.file_content())
    assert open_models(loaded, model_directory, tmp_path).all() == []
    assert (tmp_path / "m.safetensors").exists()


def test_ids_are_unique_and_the_number_of_models_is_bounded(
    loaded: LoadedModel, model_directory: Path, tmp_path: Path, rows, derived: Model
):
    models = open_models(loaded, model_directory, tmp_path)
    for number in range(DERIVED_MODELS_MAX):
        models.add(a_recipe(loaded, rows, f"m{number}"), derived)
    with pytest.raises(ModelExistsError):
        models.add(a_recipe(loaded, rows, "m0"), derived)
    with pytest.raises(ModelExistsError):
        models.check_room(loaded.id)
    with pytest.raises(ModelsFullError):
        models.add(a_recipe(loaded, rows, "more"), derived)
    assert not (tmp_path / "more.safetensors").exists()


def test_a_job_whose_model_disagrees_with_the_hooks_fails_and_keeps_nothing(
    loaded: LoadedModel, model_directory: Path, tmp_path: Path, vectors
):
    # The file has changed since the model was loaded: what is read is not what is served.
    other = tmp_path / "other"
    other.mkdir()
    from safetensors.torch import load_file, save_file

    tensors = load_file(model_directory / "model.safetensors")
    tensors["model.layers.3.mlp.down_proj.weight"] *= 1.5
    save_file(tensors, other / "model.safetensors")
    models = open_models(loaded, other, tmp_path / "models")
    with pytest.raises(JobError) as failed:
        finished(orthogonalization(model_id="m", vectors=vectors, derived=models))
    assert failed.value.code == "weights_disagree"
    assert models.all() == []
    assert list((tmp_path / "models").glob("*.safetensors")) == []


async def job_result(client, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            _, job = await client.call("GET", f"/v1/jobs/{job_id}")
            if job["status"] not in ("queued", "running"):
                return job
            await asyncio.sleep(0.02)


async def upload(client, vector_id: str, *, layer: int = 12) -> None:
    values = torch.randn(576, generator=torch.Generator().manual_seed(len(vector_id))).tolist()
    status, _ = await client.call("POST", "/v1/steering/vectors", {"id": vector_id, "layer": layer, "vector": values})
    assert status == 201


async def test_an_orthogonalised_model_is_made_listed_asked_steered_and_deleted_over_http(client):
    await upload(client, "v")
    plain = (await client.chat(temperature=0, max_tokens=8))[1]
    asked = {"model": "without-v", "vectors": ["v"], "job_id": "j"}
    status, job = await client.call("POST", "/v1/steering/orthogonalize", asked)
    assert (status, job["kind"], job["status"]) == (202, "orthogonalize", "queued")
    neighbours = [asyncio.create_task(client.chat(temperature=0, max_tokens=8)) for _ in range(2)]
    job = await job_result(client, "j")
    assert (job["status"], job["result"]["matrices_changed"]) == ("succeeded", 61)
    assert job["result"]["logit_difference_max"] <= 1e-4
    assert all(body["choices"] == plain["choices"] for _, body in await asyncio.gather(*neighbours))
    _, models = await client.call("GET", "/v1/models")
    base, derived = models["data"]
    assert (base["id"], derived["id"]) == (MODEL_ID, "without-v")
    assert derived["derived"]["from"] == MODEL_ID
    assert [vector["id"] for vector in derived["derived"]["vectors"]] == ["v"]
    prompt = {"model": "without-v", "prompt": "The sea", "max_tokens": 6, "temperature": 0}
    status, body = await client.call("POST", "/v1/completions", prompt)
    assert (status, body["model"]) == (200, "without-v")
    # A vector of the base model steers a derived one: they have one residual space.
    steering = {"vectors": [{"id": "v", "op": "add", "scale": 2.0}]}
    status, body = await client.call("POST", "/v1/completions", {**prompt, "steering": steering})
    assert (status, body["steering"]["applied"]["layers"]) == (200, [12])
    assert (await client.call("POST", "/v1/steering/orthogonalize", {**asked, "job_id": "k"}))[0] == 409
    assert (await client.call("DELETE", "/v1/models/without-v"))[1]["deleted"] is True
    assert (await client.call("DELETE", "/v1/models/without-v"))[0] == 404
    assert (await client.call("POST", "/v1/completions", prompt))[0] == 404
    status, body = await client.call("DELETE", f"/v1/models/{MODEL_ID}")
    assert (status, body["error"]["code"]) == (400, "not_derived")
    assert (await client.chat(temperature=0, max_tokens=8))[1]["choices"] == plain["choices"]


async def test_of_a_vector_with_many_layers_the_one_that_extraction_selected_is_taken(client):
    values = {layer: torch.randn(576, generator=torch.Generator().manual_seed(layer)) for layer in (8, 12)}
    metadata = {"model_digest": None, "selected_layer": 12}
    client.service.store.add(direction(id="many", values=values, metadata=metadata))
    asked = {"model": "m", "vectors": ["many"], "job_id": "j"}
    assert (await client.call("POST", "/v1/steering/orthogonalize", asked))[0] == 202
    assert (await job_result(client, "j"))["result"]["logit_difference_max"] <= 1e-4
    recipe = client.service.derived.get("m").recipe
    assert recipe.vectors[0][:2] == ("many", 12)
    assert torch.allclose(recipe.basis[0], values[12] / values[12].norm(), atol=1e-6)


async def test_answers_of_a_model_that_is_deleted_come_to_their_end(client, derived: Model, loaded, rows):
    await asyncio.to_thread(client.service.derived.add, a_recipe(loaded, rows, "m"), derived)
    asked = {"model": "m", "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
    answer = asyncio.create_task(client.call("POST", "/v1/completions", asked))
    async with asyncio.timeout(10):
        while not client.service.derived.active_requests:  # noqa: ASYNC110 - the engine is a thread
            await asyncio.sleep(0.005)
    assert (await client.call("DELETE", "/v1/models/m"))[0] == 200
    assert client.service.active_requests  # a drain of the whole server would wait for it, too
    status, body = await answer
    assert (status, body["usage"]["completion_tokens"]) == (200, 40)
    async with asyncio.timeout(10):
        while client.service.derived._leaving:  # noqa: ASYNC110 - its engine ends by itself
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": MODEL_ID}, 409, "model_exists"),
        ({"model": "Bad Id"}, 400, "invalid_value"),
        ({"vectors": []}, 400, "invalid_value"),
        ({"vectors": ["v", "v"]}, 400, "invalid_value"),
        ({"vectors": ["none"]}, 400, "unknown_vector"),
        ({"vectors": ["many"]}, 400, "several_directions"),
        ({"vectors": ["eraser"]}, 400, "wrong_kind"),
        ({"vectors": ["foreign"]}, 400, "wrong_model"),
        ({"vectors": ["short"]}, 400, "wrong_dimension"),
        ({"vectors": ["v", "against"]}, 400, "dependent_directions"),
        ({"strength": 1}, 400, "unknown_field"),
    ],
)
async def test_a_bad_orthogonalisation_is_refused_before_anything_runs(client, change, status, code):
    await upload(client, "v")
    store = client.service.store
    ones, none = torch.ones(576), {"model_digest": None}
    store.add(direction(id="against", values={4: -3 * store.get("v").tensors["direction.12"]}, metadata=none))
    store.add(direction(id="many", values={3: ones, 4: ones}, metadata=none))
    store.add(direction(id="foreign", values={3: ones}, metadata={"model_digest": "0" * 64}))
    store.add(direction(id="short", values={3: torch.ones(64)}, metadata=none))
    tensors = {"read.3": ones, "write.3": ones, "mean.3": ones}
    store.add(StoredVector(id="eraser", kind=Kind.ERASER, layers=(3,), tensors=tensors, metadata=none))
    before = client.service.loaded.model.forward_passes
    got, body = await client.call("POST", "/v1/steering/orthogonalize", {"model": "m", "vectors": ["v"], **change})
    assert (got, body["error"]["code"]) == (status, code)
    assert client.service.loaded.model.forward_passes == before
    assert (await client.call("GET", "/v1/jobs"))[1]["data"] == []
