"""Small, mild texts that come with the server, written for it: two sides each, split into training and test.

One `<name>.jsonl` per dataset: the first line says what it is, every other line is one example. README.md there has the
format, the licence and the limits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from importlib import resources
from typing import Any

NAMES = ("formality", "harmfulness", "language", "sentiment")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One side: what its texts have in common, and the texts."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """`positive` minus `negative` is the direction that the dataset is named for.

    is_paired: `positive.train[i]` and `negative.train[i]` say the same and differ in the one thing; test likewise.
    is_instruction: the texts are what a user says; otherwise what anybody might write. digest_sha256: of the file.
    """

    name: str
    positive: Side
    negative: Side
    is_paired: bool
    is_instruction: bool
    digest_sha256: str


@functools.cache
def load(name: str) -> Dataset:
    """Raises KeyError for a name that is not one of `NAMES`."""
    if name not in NAMES:
        raise KeyError(name)
    content = resources.files(__name__).joinpath(f"{name}.jsonl").read_bytes()
    head, *examples = [json.loads(line) for line in content.decode("utf-8").splitlines()]
    return Dataset(
        name=name,
        positive=_side(head["positive"], examples),
        negative=_side(head["negative"], examples),
        is_paired=head["is_paired"],
        is_instruction=head["is_instruction"],
        digest_sha256=hashlib.sha256(content).hexdigest(),
    )


def _side(name: str, examples: list[dict[str, Any]]) -> Side:
    texts = {split: tuple(one[name] for one in examples if one["split"] == split and name in one) for split in _SPLITS}
    return Side(name=name, train=texts["train"], test=texts["test"])


_SPLITS = ("train", "test")
