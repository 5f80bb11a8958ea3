"""The texts of a job: where they come from, and their tokens. Whatever is wrong with them is an ApiError 400."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from inference.chat import TemplateError
from inference.datasets import NAMES, Dataset, load
from inference.extraction.samples import Samples
from inference.limits import TEXT_BYTES_MAX
from inference.loading import LoadedModel
from inference.passages import TokenIds
from inference.server.errors import bad_request
from inference.server.experiment_schema import Learning

_HELD_OUT_EVERY = 4
"""Of one's own texts, every fourth is held out where a job needs texts that nothing was fitted to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Two sides of texts. `params` name the fields they came from, for messages."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    is_paired: bool
    params: tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastTexts:
    """Where a dataset has them, `train` and `test` are its own; one's own texts are all in `everything`."""

    everything: Part
    train: Part
    test: Part
    side_names: tuple[str, str]
    dataset: str | None
    digest_sha256: str


def contrast_texts(body: Learning, *, paired: bool) -> ContrastTexts:
    """The two sides that a request names; own texts are pairs if `paired`."""
    if body.dataset is not None:
        if body.positive is not None or body.negative is not None:
            raise bad_request("give texts or a dataset, not both", param="dataset")
        return _of_dataset(known_dataset(body.dataset))
    if body.positive is None or body.negative is None:
        missing = "positive" if body.positive is None else "negative"
        raise bad_request("give both sides of texts, or a dataset", param=missing)
    positive, negative = tuple(body.positive), tuple(body.negative)
    if paired and len(positive) != len(negative):
        counts = f"{len(positive)} positive, {len(negative)} negative"
        message = (
            f"as many positive as negative texts are needed, not {counts}; texts that are no pairs need paired false"
        )
        raise bad_request(message, param="negative")
    parts = []
    for wanted in (None, False, True):
        chosen = tuple(
            tuple(text for i, text in enumerate(side) if wanted is None or _is_held_out(i) is wanted)
            for side in (positive, negative)
        )
        parts.append(Part(positive=chosen[0], negative=chosen[1], is_paired=paired, params=("positive", "negative")))
    document = json.dumps([positive, negative], ensure_ascii=False, separators=(",", ":"))
    return ContrastTexts(
        everything=parts[0],
        train=parts[1],
        test=parts[2],
        side_names=("positive", "negative"),
        dataset=None,
        digest_sha256=hashlib.sha256(document.encode()).hexdigest(),
    )


def known_dataset(name: str) -> Dataset:
    if name not in NAMES:
        raise bad_request(f"no dataset {name!r}; there are {', '.join(NAMES)}", param="dataset", code="unknown_dataset")
    return load(name)


def samples(part: Part, *, chat: bool, loaded: LoadedModel) -> Samples:
    """Both sides as token ids."""
    positive, negative = (
        tuple(token_ids(text, chat=chat, param=param, loaded=loaded) for text in side)
        for side, param in zip((part.positive, part.negative), part.params, strict=True)
    )
    return Samples(positive=positive, negative=negative, is_paired=part.is_paired)


def token_ids(
    text: str, *, chat: bool, param: str, loaded: LoadedModel, ending: str = "", answer_tokens: int = 0
) -> TokenIds:
    """At least one token; room for `answer_tokens` more is left. `ending` is how the answer begins."""
    if len(text.encode()) > TEXT_BYTES_MAX:
        raise bad_request(f"a text is longer than {TEXT_BYTES_MAX} bytes", param=param, code="text_too_long")
    try:
        shown = loaded.template.render([{"role": "user", "content": text}]) if chat else text
    except TemplateError as error:
        raise bad_request(str(error), param=param) from error
    ids = tuple(loaded.tokenizer.encode(shown + ending, add_special_tokens=not chat))
    most = loaded.config.context_tokens - answer_tokens
    if not 1 <= len(ids) <= most:
        message = f"a text has {len(ids)} tokens, 1 to {most} are possible"
        raise bad_request(message, param=param, code="context_length_exceeded")
    return ids


def answer_ids(text: str, *, param: str, loaded: LoadedModel) -> TokenIds:
    """The tokens of an answer, or of the beginning of one; at least one."""
    ids = tuple(loaded.tokenizer.encode(text, add_special_tokens=False))
    if not ids:
        raise bad_request("an answer has no tokens", param=param, code="empty_text")
    return ids


def template_digest(loaded: LoadedModel) -> str:
    """Of the chat template and the tokens it may write."""
    template = loaded.template
    document = json.dumps([template.source, template.bos, template.eos])
    return hashlib.sha256(document.encode()).hexdigest()


def starts_with_bos(texts: Sequence[TokenIds], loaded: LoadedModel) -> bool:
    """Whether every text begins with the model's BOS token: vectors made with and without it differ."""
    return loaded.config.bos_token_id is not None and all(ids[0] == loaded.config.bos_token_id for ids in texts)


def _of_dataset(dataset: Dataset) -> ContrastTexts:
    positive, negative = dataset.positive, dataset.negative
    train, test = (
        Part(positive=sides[0], negative=sides[1], is_paired=dataset.is_paired, params=("dataset", "dataset"))
        for sides in ((positive.train, negative.train), (positive.test, negative.test))
    )
    return ContrastTexts(
        # What was held out stays so: a vector made from a dataset can be judged on the rest of it.
        everything=train,
        train=train,
        test=test,
        side_names=(positive.name, negative.name),
        dataset=dataset.name,
        digest_sha256=dataset.digest_sha256,
    )


def _is_held_out(index: int) -> bool:
    return index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
