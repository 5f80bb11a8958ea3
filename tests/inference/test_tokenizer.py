from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.loading import LoadedModel
from inference.tokenizer import Detokenizer

TEXTS = [
    "Hello, world!",
    "In 1984 and 20261120, 3.14159",
    "naïve café 東京 🦉👩‍👩‍👧 ﷽",
    "tabs\tand\n\nnew lines   and   spaces ",
    "def f(x):\n    return x**2  # ²",
]


def test_texts_survive_the_way_to_ids_and_back(loaded: LoadedModel):
    for text in TEXTS:
        assert loaded.tokenizer.decode(loaded.tokenizer.encode(text, add_special_tokens=True)) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_that_the_vocabulary_has_bytes_for(loaded: LoadedModel, text: str):
    # This vocabulary has no token for 21 bytes: some control characters, and the lead bytes of planes 4 to 16.
    single = {loaded.tokenizer.token_bytes(i) for i in range(loaded.tokenizer.vocab_size)}
    text = "".join(c for c in text if all(bytes([byte]) in single for byte in c.encode()))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text, add_special_tokens=True)) == text


def test_every_digit_is_a_token_of_its_own(loaded: LoadedModel):
    ids = loaded.tokenizer.encode("90210", add_special_tokens=True)
    assert [loaded.tokenizer.decode([i]) for i in ids] == ["9", "0", "2", "1", "0"]
    ids = loaded.tokenizer.encode("to 42", add_special_tokens=True)
    assert [loaded.tokenizer.decode([i]) for i in ids] == ["to", " ", "4", "2"]


def test_special_tokens_are_one_id_each_and_decode_to_nothing(loaded: LoadedModel):
    ids = loaded.tokenizer.encode("<|im_start|>user\nhi<|im_end|>", add_special_tokens=False)
    assert (ids[0], ids[-1]) == (1, 2)
    assert loaded.tokenizer.decode(ids) == "user\nhi"
    assert loaded.end_ids == {0, 2}


def test_a_stream_never_splits_a_character_and_joins_to_the_whole_text(loaded: LoadedModel):
    for text in TEXTS:
        detokenizer = Detokenizer(loaded.tokenizer)
        ids = loaded.tokenizer.encode(text, add_special_tokens=True)
        pieces = [detokenizer.push(i) for i in ids]
        assert "�" not in "".join(pieces)
        assert "".join(pieces) + detokenizer.finish() == text


def test_a_stream_cut_inside_a_character_ends_with_a_replacement_character(loaded: LoadedModel):
    ids = loaded.tokenizer.encode("🦉", add_special_tokens=True)
    assert len(ids) > 1
    detokenizer = Detokenizer(loaded.tokenizer)
    assert detokenizer.push(ids[0]) + detokenizer.finish() == "�"


def test_ids_are_those_of_the_general_library_reading_the_same_weights(loaded: LoadedModel):
    from transformers import AutoTokenizer

    from inference.prepare import find_gguf

    path = find_gguf()
    oracle = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # Without digits (² is one too): that library's GGUF reader forgets that they are split off before everything else.
    plain = ["".join(c for c in text if not c.isnumeric()) for text in TEXTS]
    for text in [*plain, "<|im_start|>user\nhi<|im_end|>\n"]:
        assert loaded.tokenizer.encode(text, add_special_tokens=False) == oracle.encode(text, add_special_tokens=False)
