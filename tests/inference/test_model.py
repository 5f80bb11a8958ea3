from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from inference.config import UnsupportedModelError, config_from_hf
from inference.loading import LoadedModel
from inference.model import Model, Span
from inference.prepare import find_gguf
from inference.weights import open_source

PROMPT = "The river rose for three days. On the fourth, 12 boats came down from the hills, and the people said:"


@pytest.fixture(scope="module")
def ids(loaded: LoadedModel) -> list[int]:
    return loaded.tokenizer.encode(PROMPT, add_special_tokens=True)


def test_logits_are_those_of_the_general_library(oracle, loaded: LoadedModel, ids: list[int], all_logits):
    with torch.no_grad():
        expected = oracle(torch.tensor([ids])).logits[0]
    ours = all_logits(loaded.model, ids)
    assert float((ours - expected).abs().max()) < 1e-3
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))


def test_block_output_l_is_hidden_state_l_plus_one_of_the_general_library(
    oracle, loaded: LoadedModel, ids: list[int], new_cache
):
    with torch.no_grad():
        states = oracle(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in (0, 13, 20):
        ours = loaded.model.block_output(torch.tensor(ids), new_cache(), layer=layer)
        scale = float(states[layer + 1].norm(dim=-1).max())
        assert float((ours - states[layer + 1][0]).abs().max()) < 1e-5 * scale


def test_a_prompt_in_pieces_and_token_by_token_gives_the_same_logits(
    loaded: LoadedModel, ids: list[int], all_logits, new_cache
):
    whole = all_logits(loaded.model, ids)
    for cuts in ([7, 1, 5], [1] * len(ids)):
        cache, rows, start = new_cache(), [], 0
        for size in [*cuts, len(ids)]:
            piece = ids[start : start + size]
            if piece:
                rows.append(loaded.model.logits(torch.tensor(piece), [Span(cache, len(piece))], every=True))
            start += size
        assert float((torch.cat(rows) - whole).abs().max()) < 2e-4


def test_rows_of_a_batch_with_different_lengths_equal_the_same_rows_alone(
    loaded: LoadedModel, ids: list[int], new_cache
):
    def prefilled(length: int):
        cache = new_cache()
        loaded.model.logits(torch.tensor(ids[:length]), [Span(cache, length)])
        return cache

    lengths = [3, 20, 7, 11]
    together = loaded.model.logits(torch.tensor([ids[n] for n in lengths]), [Span(prefilled(n), 1) for n in lengths])
    for row, n in enumerate(lengths):
        alone = loaded.model.logits(torch.tensor([ids[n]]), [Span(prefilled(n), 1)])
        assert float((together[row] - alone[0]).abs().max()) < 1e-4


def test_a_gguf_file_loads_as_the_same_model_as_the_prepared_directory(model_directory: Path):
    from_gguf, prepared = open_source(find_gguf()), open_source(model_directory)
    assert from_gguf.config == prepared.config
    assert from_gguf.tensors.keys() == prepared.tensors.keys()
    assert all(torch.equal(from_gguf.tensors[name], prepared.tensors[name]) for name in prepared.tensors)


def _tiny_qwen2():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(5)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    config = Qwen2Config(
        **sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False
    )
    model = Qwen2ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        parameter.data.normal_(std=0.4 if "weight" in name else 1.0)
    document = json.loads(config.to_json_string(use_diff=False)) | {"architectures": ["Qwen2ForCausalLM"]}
    return model, config_from_hf(document)


def test_a_qwen2_model_with_attention_biases_and_its_own_head_matches_the_general_library(all_logits):
    oracle, config = _tiny_qwen2()
    ours = Model(config, oracle.state_dict(), dtype=torch.float32, device=torch.device("cpu"))
    ids = [5, 1, 96, 33, 2, 2, 70]
    with torch.no_grad():
        expected = oracle(torch.tensor([ids])).logits[0]
    assert float((all_logits(ours, ids) - expected).abs().max()) < 1e-3
    assert float(expected.abs().max()) > 1


def test_a_qwen2_gguf_file_loads_as_the_model_it_was_written_from(tmp_path: Path):
    import gguf

    oracle, config = _tiny_qwen2()
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.context_tokens)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_feed_forward)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.n_layers)
    for name, tensor in oracle.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = open_source(path)
    assert source.config == config.__class__(
        **{**vars(config), "bos_token_id": None, "eos_token_ids": (), "pad_token_id": None}
    )
    assert all(torch.equal(source.tensors[name], tensor) for name, tensor in oracle.state_dict().items())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rotary"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"mlp_bias": True}, "bias"),
        ({"num_key_value_heads": 4}, "heads"),
    ],
)
def test_a_model_the_forward_pass_would_get_wrong_is_refused_with_the_reason(model_directory: Path, change, word):
    document = json.loads((model_directory / "config.json").read_text())
    with pytest.raises(UnsupportedModelError, match=word):
        config_from_hf({**document, **change})


def test_a_checkpoint_with_a_missing_or_misshapen_tensor_is_refused(model_directory: Path, tmp_path: Path):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text((model_directory / "config.json").read_text())
    save_file({"model.norm.weight": torch.ones(576)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="is missing"):
        open_source(tmp_path)
