"""Real activations for the tests of this folder: the sentiment texts through SmolLM2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.datasets import load
from inference.extraction.samples import Samples
from inference.extraction.strength import at_strength
from inference.lab import Lab
from inference.loading import LoadedModel
from inference.passages import TokenIds
from inference.steering.compile import compile_spec
from inference.steering.program import CompiledSteering
from inference.steering.spec import SteeringSpec
from inference.steering.store import VectorStore


@pytest.fixture(scope="session")
def lab(loaded: LoadedModel) -> Lab:
    return Lab(loaded.model)


@pytest.fixture(scope="session")
def encode(loaded: LoadedModel) -> Callable[..., tuple[TokenIds, ...]]:
    def encode(texts: Any, *, chat: bool = False) -> tuple[TokenIds, ...]:
        shown = [loaded.template.render([{"role": "user", "content": text}]) if chat else text for text in texts]
        return tuple(tuple(loaded.tokenizer.encode(text, add_special_tokens=not chat)) for text in shown)

    return encode


@pytest.fixture(scope="session")
def sentiment(encode) -> tuple[Samples, Samples]:
    """(training, test) pairs."""
    found = load("sentiment")
    sides = [(found.positive.train, found.negative.train), (found.positive.test, found.negative.test)]
    train, test = (
        Samples(positive=encode(positive), negative=encode(negative), is_paired=True) for positive, negative in sides
    )
    return train, test


@pytest.fixture(scope="session")
def harmfulness(encode) -> tuple[Samples, Samples]:
    """(training, test) instructions in the chat template, a few of each: without pairs."""
    found = load("harmfulness")
    train = (found.positive.train[:12], found.negative.train[:12])
    test = (found.positive.test[:4], found.negative.test[:4])
    first, second = (
        Samples(positive=encode(positive, chat=True), negative=encode(negative, chat=True), is_paired=False)
        for positive, negative in (train, test)
    )
    return first, second


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    return VectorStore(tmp_path / "vectors")


@pytest.fixture
def at(loaded: LoadedModel, store: VectorStore) -> Callable[[SteeringSpec], Callable[[float], CompiledSteering]]:
    """at(spec)(strength)"""

    def at(spec: SteeringSpec) -> Callable[[float], CompiledSteering]:
        return lambda strength: compile_spec(
            at_strength(spec, strength),
            store=store,
            config=loaded.config,
            model_digest=loaded.vectors_digest,
        )

    return at
