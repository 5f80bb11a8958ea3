"""`POST /v1/embeddings`: vectors are quantised to the form that policy chooses, charged raw and rendered from that form."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from functools import lru_cache
from math import sqrt
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.fields import Request, Unlisted, parse
from gateway.wire.generation import Count, whole
from policy.canonical import Embedded, Event, Finish, Malformed, UsageReport
from policy.limits import ANSWER_JSON_BYTES_MAX, EMBEDDING_DIMENSIONS_MAX, EMBEDDING_INPUTS_MAX
from policy.refusal import Reason, Refused
from policy.release import Outcome, Release, Usage, Vectors
from policy.vectors import INT8_STEPS, binary_row, int8_row

UPSTREAM_PATH = "/v1/embeddings"

Text = Annotated[str, Meta(min_length=1)]
Texts = Annotated[list[Text], Meta(min_length=1, max_length=EMBEDDING_INPUTS_MAX)]

DECIMALS = 6  # of a component: a step of int8 is a hundred times larger in vectors of up to a thousand dimensions

_UNLISTED = Unlisted(
    reasons={"logprobs": "log-probabilities are not released"}, harmless={}, dropped=frozenset({"user", "metadata"})
)


class EmbeddingsRequest(Request, forbid_unknown_fields=True, kw_only=True):
    """The allow-list of an embeddings request. Texts only: token ids would need a tokenizer to be bounded."""

    input: Text | Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None


class EmbeddingRow(Struct):
    """One vector as a backend gives it."""

    embedding: list[float]
    index: int | None = None


class PromptUsage(Struct):
    """Token counts as claimed. Nothing is generated."""

    prompt_tokens: Count


class EmbeddingsBody(Struct):
    """A backend's whole answer."""

    data: list[EmbeddingRow]
    usage: PromptUsage | None = None


_REQUEST = msgspec.json.Decoder(EmbeddingsRequest)
_BODY = msgspec.json.Decoder(EmbeddingsBody)


def parse_request(body: bytes) -> EmbeddingsRequest | Refused:
    """A client's body as a checked request, or what is wrong with it."""
    return parse(body, _REQUEST, _UNLISTED)


def sanitise(request: EmbeddingsRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call | Refused:
    """The call for one backend. Its reserve covers the largest answer that the decoder lets through."""
    if rules.embeddings == "refuse":
        message = "This model gives no embeddings here. The operator can set 'embeddings: int8' or 'binary' for it."
        return Refused(reason=Reason.UNKNOWN_ROUTE, message=message, param="model")
    if request.dimensions is not None and request.dimensions != rules.dimensions:
        fixed = f"are {rules.dimensions}" if rules.dimensions is not None else "cannot be chosen"
        message = f"dimensions: this model's dimensions {fixed}."
        return Refused(reason=Reason.INVALID_REQUEST, message=message, param="dimensions")
    inputs = [request.input] if isinstance(request.input, str) else request.input
    bits: Literal[1, 8] = 8 if rules.embeddings == "int8" else 1
    dimensions_max = rules.dimensions or EMBEDDING_DIMENSIONS_MAX
    fields = {"model": rules.name, "input": inputs, "encoding_format": "float"}
    return Call(
        model=rules.name,
        stream=False,
        upstream_method="POST",
        upstream_path=UPSTREAM_PATH,
        upstream_body=msgspec.json.encode(fields),
        answer_bytes_max=-(-len(inputs) * dimensions_max * bits // 8),
        tools_declared=frozenset(),
        decoder=EmbeddingsDecoder(
            count=len(inputs), bits=bits, dimensions=rules.dimensions, usage=rules.usage and rules.usage_claimed
        ),
        renderer=EmbeddingsRenderer(model=rules.name, base64_encoded=request.encoding_format == "base64"),
    )


class EmbeddingsDecoder:
    """All vectors or none: exactly one for each input, all of one length. `dimensions` None: the backend chooses it."""

    def __init__(self, *, count: int, bits: Literal[1, 8], dimensions: int | None, usage: bool) -> None:
        self._count = count
        self._bits = bits
        self._dimensions = dimensions
        self._usage = usage
        self._chunks: list[bytes] = []
        self._bytes = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Collects. Raises `Malformed` over `ANSWER_JSON_BYTES_MAX`."""
        self._bytes += len(chunk)
        if self._bytes > ANSWER_JSON_BYTES_MAX:
            raise Malformed(f"embeddings over {ANSWER_JSON_BYTES_MAX} bytes")
        self._chunks.append(chunk)
        return iter(())

    def eof(self) -> Iterator[Event]:
        """The quantised vectors. Raises `Malformed`."""
        try:
            body = _BODY.decode(b"".join(self._chunks))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise Malformed(f"not the JSON of embeddings: {type(fault).__name__}") from fault
        rows = self._in_order(body.data)
        self._check(rows)
        quantise = int8_row if self._bits == 8 else binary_row
        try:
            vectors = Vectors(
                bits=self._bits, dimensions_coded=self._dimensions is None, rows=tuple(map(quantise, rows))
            )
        except ValueError as fault:
            raise Malformed("a component is not a finite number") from fault
        yield Embedded(vectors)
        if body.usage is not None and self._usage:
            yield UsageReport(Usage(prompt_tokens=whole(body.usage.prompt_tokens), completion_tokens=0))
        yield Finish(Outcome.STOP)

    def _in_order(self, data: list[EmbeddingRow]) -> list[list[float]]:
        placed = {row.index if row.index is not None else at: row.embedding for at, row in enumerate(data)}
        if len(data) != self._count or sorted(placed) != list(range(self._count)):
            raise Malformed("not one embedding for each input")
        return [placed[index] for index in range(self._count)]

    def _check(self, rows: list[list[float]]) -> None:
        dimensions = self._dimensions if self._dimensions is not None else len(rows[0])
        if any(len(row) != dimensions for row in rows):
            raise Malformed("an embedding of the wrong length")
        if not 1 <= dimensions <= EMBEDDING_DIMENSIONS_MAX:
            raise Malformed("embeddings of no length, or of too great a one")


class EmbeddingsRenderer:
    """A list of embeddings: int8 rows scaled to unit length, binary rows as signs."""

    content_type = "application/json"

    def __init__(self, *, model: str, base64_encoded: bool) -> None:
        self._model = model
        self._base64_encoded = base64_encoded

    def release(self, release: Release) -> bytes:
        """The whole body."""
        assert release.ending is not None
        vectors, usage = release.ending.vectors, release.ending.usage
        assert vectors is not None
        data = [
            {"object": "embedding", "index": index, "embedding": self._embedding(row, vectors.bits)}
            for index, row in enumerate(vectors.rows)
        ]
        body: dict[str, Any] = {"object": "list", "data": data, "model": self._model}
        if usage is not None:
            body["usage"] = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
        return msgspec.json.encode(body)

    def _embedding(self, row: bytes, bits: Literal[1, 8]) -> str | msgspec.Raw:
        values = [-1.0, 1.0] if bits == 1 else _unit_steps(_square(row))
        if self._base64_encoded:
            packed = [struct.pack("<f", value) for value in values]
            return base64.b64encode(b"".join([packed[step] for step in row])).decode()
        spelled = [msgspec.json.encode(value) for value in values]
        return msgspec.Raw(b"[" + b",".join([spelled[step] for step in row]) + b"]")


def _square(row: bytes) -> int:
    """The squared length of an int8 row, in steps: an integer, so exact."""
    return sum([(step - INT8_STEPS) ** 2 for step in row])


@lru_cache(maxsize=64)
def _unit_steps(square: int) -> list[float]:
    """What each of the 255 steps is worth in a vector of unit length."""
    length = sqrt(square) or 1.0
    return [round(step / length, DECIMALS) + 0.0 for step in range(-INT8_STEPS, INT8_STEPS + 1)]
