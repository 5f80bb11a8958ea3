"""One prepared model for the whole run, and a server on a real socket for each test that wants one."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from aiohttp import web
from rich.console import Console
from safetensors.torch import load_file

from inference.derived.models import DerivedModels
from inference.engine import Engine
from inference.jobs.table import JobTable
from inference.kv import KvCache
from inference.loading import LoadedModel, load
from inference.model import Model, Span
from inference.prepare import prepare
from inference.request import EndReason, EngineRequest, Handle
from inference.sampling import SamplingParams
from inference.score.answers import Answer, sample_answers
from inference.score.app import ScoreService
from inference.score.digest import digest, measure_document
from inference.score.scorer import Scorer
from inference.server.app import make_app
from inference.server.service import Service
from inference.steering.applied import Applied
from inference.steering.program import CompiledSteering
from inference.steering.store import VectorStore
from inference.weights import open_source

REPOSITORY = Path(__file__).parents[2]
MODEL_ID = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def model_directory() -> Path:
    directory = Path(os.environ.get("WEIR_TEST_CACHE", REPOSITORY / "var" / "test-model"))
    prepare(directory, console=Console(quiet=True))
    return directory


@pytest.fixture(scope="session")
def loaded(model_directory: Path) -> LoadedModel:
    return load(model_directory, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def oracle(model_directory: Path):
    """The same weights in the general library."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**json.loads((model_directory / "config.json").read_text()))
    model = LlamaForCausalLM(config)
    missing = model.load_state_dict(load_file(model_directory / "model.safetensors"), strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    return model.eval()


@pytest.fixture(scope="session")
def answers(loaded: LoadedModel) -> list[Answer]:
    """Some of the model's own answers at temperature 0.8, the same ones in every run."""
    return sample_answers(loaded, count=6, tokens_max=128)


@pytest.fixture(scope="session")
def score_service(loaded: LoadedModel, model_directory: Path) -> Iterator[ScoreService]:
    document = measure_document(loaded, open_source(model_directory).tensors)
    scorer = Scorer(loaded, batch_tokens_max=1024)
    scorer.start()
    yield ScoreService(loaded=loaded, scorer=scorer, code=digest(document), document=document)
    scorer.stop()


@pytest.fixture
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    engine = Engine(loaded.model, batch_rows_max=8, kv_tokens_max=4096)
    engine.start()
    yield engine
    engine.stop()


@dataclasses.dataclass
class Run:
    """What came of one engine request; `wait` blocks until its end."""

    token_ids: list[int] = dataclasses.field(default_factory=list)
    reason: EndReason | None = None
    applied: Applied | None = None
    handle: Handle | None = None
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def wait(self) -> Run:
        assert self.over.wait(60)
        return self


Start = Callable[..., Run]


@pytest.fixture
def start(engine: Engine, loaded: LoadedModel) -> Start:
    """start("text", seed=1, max_tokens=8, …) submits a request; its Run fills up in the background."""

    def start(
        prompt: str,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        max_tokens: int = 8,
        steering: CompiledSteering | None = None,
        on_token: Callable[[int], bool] = lambda _: False,
    ) -> Run:
        run = Run()

        def take(token_id: int) -> bool:
            run.token_ids.append(token_id)
            return on_token(token_id)

        def end(reason: EndReason, applied: Applied) -> None:
            run.reason, run.applied = reason, applied
            run.over.set()

        request = EngineRequest(
            prompt_ids=tuple(loaded.tokenizer.encode(prompt, add_special_tokens=True)),
            max_tokens=max_tokens,
            sampling=SamplingParams(seed=seed, temperature=temperature),
            steering=steering,
            on_token=take,
            on_end=end,
        )
        submitted = engine.submit(request)
        assert isinstance(submitted, Handle), submitted
        run.handle = submitted
        return run

    return start


@pytest.fixture(scope="session")
def new_cache(loaded: LoadedModel) -> Callable[[], KvCache]:
    model = loaded.model
    return lambda: KvCache(model.config, capacity=1024, dtype=model.dtype, device=model.device)


@pytest.fixture(scope="session")
def all_logits() -> Callable[[Model, list[int]], torch.Tensor]:
    """all_logits(model, ids): logits at every position [tokens, vocab_size] of one fresh sequence."""

    def all_logits(model: Model, token_ids: list[int]) -> torch.Tensor:
        cache = KvCache(model.config, capacity=len(token_ids), dtype=model.dtype, device=model.device)
        return model.logits(torch.tensor(token_ids), [Span(cache, len(token_ids))], every=True)

    return all_logits


class Client:
    """HTTP client of one running server."""

    def __init__(self, session: aiohttp.ClientSession, base: str, service: Service) -> None:
        self._session, self.base, self.service = session, base, service

    async def call(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None) -> tuple[int, Any]:
        data = {"data": raw} if raw is not None else {"json": body} if body is not None else {}
        async with self._session.request(method, self.base + path, **data) as response:
            return response.status, await response.json()

    async def chat(self, text: str = "What is the capital of France?", **fields: Any) -> tuple[int, Any]:
        messages = [{"role": "user", "content": text}]
        return await self.call("POST", "/v1/chat/completions", {"model": MODEL_ID, "messages": messages, **fields})

    def post(self, path: str, body: Any) -> Any:
        return self._session.post(self.base + path, json=body)


def make_service(loaded: LoadedModel, *, path: Path, state: Path) -> Service:
    """A service as `serve` makes it, with its state in a directory."""

    def engine_for(model: Model) -> Engine:
        return Engine(model, batch_rows_max=8, kv_tokens_max=8192)

    return Service(
        loaded=loaded,
        engine=engine_for(loaded.model),
        store=VectorStore(state / "vectors"),
        jobs=JobTable(state / "jobs"),
        derived=DerivedModels(state / "models", base=loaded, path=path, engine_for=engine_for),
    )


@pytest.fixture
async def client(loaded: LoadedModel, model_directory: Path, tmp_path: Path) -> AsyncIterator[Client]:
    service = make_service(loaded, path=model_directory, state=tmp_path)
    runner = web.AppRunner(make_app(service), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    service.start()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession() as session:
        yield Client(session, f"http://{host}:{port}", service)
    service.stop()
    await runner.cleanup()
