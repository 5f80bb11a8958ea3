from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.loading import LoadedModel
from inference.score.segmentation import Segmenter

UNSAYABLE = "\x04\x06\x13\x14\x16\x1d\U00040000\U000bffff"  # bytes F1 and F2 lead planes 4 to 11
any_text = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(UNSAYABLE + "\x00 \n\u0301\u200d🦉a<|>")))


@pytest.fixture(scope="module")
def segmenter(loaded: LoadedModel) -> Segmenter:
    return Segmenter(loaded.tokenizer, start_id=1, prompt_tokens_max=100)


@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_a_text_can_be_read_back_from_its_tokens_and_escapes(loaded: LoadedModel, segmenter: Segmenter, text: str):
    token_ids, escapes = segmenter.cut(text)
    single = {loaded.tokenizer.token_bytes(i) for i in range(49_152)}
    sayable = "".join(c for c in text if all(bytes([byte]) in single for byte in c.encode()))
    assert b"".join(map(loaded.tokenizer.token_bytes, token_ids)) == sayable.encode()
    assert escapes == len(text.encode()) - len(sayable.encode())
    assert all(loaded.tokenizer.token_bytes(i) for i in token_ids)


def test_spelled_out_special_tokens_are_ordinary_text_in_an_answer_and_special_in_a_prompt(
    loaded: LoadedModel, segmenter: Segmenter
):
    path = segmenter.path("<|im_start|>", "<|im_end|>", add_special_tokens=False)
    assert path.token_ids[: path.prompt_tokens].tolist() == [1]
    assert path.symbols == len(path.token_ids) - 1 > 1
    assert loaded.tokenizer.decode(path.token_ids) == "<|im_end|>"


def test_an_ordinary_answer_is_cut_as_the_tokenizer_would(loaded: LoadedModel, segmenter: Segmenter):
    text = "The capital of France is Paris.\n\n1. It lies on the Seine. 🦉"
    assert segmenter.cut(text) == (loaded.tokenizer.encode(text, add_special_tokens=False), 0)


def test_only_the_end_of_a_long_prompt_is_kept_and_an_empty_one_begins_with_the_start_token(
    loaded: LoadedModel, segmenter: Segmenter
):
    prompt = " ".join(map(str, range(500)))
    whole = loaded.tokenizer.encode(prompt, add_special_tokens=True)
    path = segmenter.path(prompt, "x", add_special_tokens=True)
    assert path.prompt_tokens == 100
    assert path.token_ids[:100].tolist() == whole[-100:]
    for nothing in ("", "\x04"):
        assert segmenter.path(nothing, "", add_special_tokens=True).token_ids.tolist() == [1]


def test_a_tokenizer_that_changes_a_text_falls_back_to_bytes(loaded: LoadedModel):
    class Forgetful:
        """A tokenizer whose merges lose every second token."""

        def __init__(self) -> None:
            self.vocab_size, self.token_bytes = loaded.tokenizer.vocab_size, loaded.tokenizer.token_bytes

        def literal(self):
            return self

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return loaded.tokenizer.encode(text, add_special_tokens=add_special_tokens)[::2]

    segmenter = Segmenter(Forgetful(), start_id=1, prompt_tokens_max=9)
    token_ids, escapes = segmenter.cut("one two three")
    assert [loaded.tokenizer.token_bytes(i) for i in token_ids] == [bytes([byte]) for byte in b"one two three"]
    assert escapes == 0
