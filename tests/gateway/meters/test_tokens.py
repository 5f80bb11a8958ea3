"""A pinned tokenizer counts; any other file is refused with its reason."""

import hashlib

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from gateway.meters.tokens import TokenizerCounter, TokenizerError


@pytest.fixture
def tokenizer(tmp_path):
    made = Tokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_counts_the_tokens_of_a_text(tokenizer):
    counter = TokenizerCounter(tokenizer, digest=digest(tokenizer))
    assert counter.tokens("one two three") == 3
    assert counter.tokens("") == 0


def test_a_file_with_another_digest_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="the policy pins"):
        TokenizerCounter(tokenizer, digest="0" * 64)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        TokenizerCounter(path, digest=digest(path))
