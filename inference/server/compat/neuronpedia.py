"""Neuronpedia's `POST /v1/steer/completion` and `/v1/steer/completion-chat`.

Source: `schemas/openapi/inference/` and `apps/inference/neuronpedia_inference/endpoints/steer/` in the repository
hijohnnylin/neuronpedia on GitHub: names, which of them are required, and what the two methods compute. A feature's
`source` is a stored object's id here: a dictionary of which `index` is a feature, or a direction, whose one index is 0.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from typing import Annotated, Any, Literal

from aiohttp import web
from msgspec import Meta
from msgspec.structs import asdict

from inference.limits import MESSAGES_MAX, SPEC_VECTORS_MAX
from inference.loading import LoadedModel
from inference.server.body import read_body
from inference.server.compat.translation import Translation
from inference.server.completions import booked, to_end
from inference.server.errors import ApiError, bad_request, json_response
from inference.server.generation import Plan, plan
from inference.server.render import Document
from inference.server.schema import ChatRequest, CompletionRequest, Message, Strict, decode
from inference.server.service import SERVICE
from inference.steering.spec import Apply, Excluded, Selector, SteeringSpec, VectorUse
from inference.steering.store import VectorStore
from inference.steering.vector import Kind, StoredVector

SteerType = Literal["STEERED", "DEFAULT"]
_OURS = {"max_tokens": "n_completion_tokens", "messages": "prompt"}


class Feature(Strict, frozen=True, kw_only=True):
    model: str
    source: str
    index: Annotated[int, Meta(ge=0)]
    strength: float


class SteerRequest(Strict, frozen=True, kw_only=True):
    """What both routes take. Of what Neuronpedia knows and this server cannot do, only the value that asks for nothing is taken."""

    model: str
    types: Annotated[list[SteerType], Meta(min_length=1, max_length=2)]
    features: Annotated[list[Feature], Meta(min_length=1, max_length=SPEC_VECTORS_MAX)] | None = None
    steer_method: Literal["SIMPLE_ADDITIVE", "ORTHOGONAL_DECOMP"]
    normalize_steering: bool
    n_completion_tokens: Annotated[int, Meta(ge=1)]
    temperature: Annotated[float, Meta(ge=0, le=2)]
    strength_multiplier: float
    freq_penalty: Annotated[float, Meta(ge=0, le=0)]
    seed: int
    stream: bool = False
    n_logprobs: Annotated[int, Meta(ge=0, le=0)] = 0


class CompletionBody(SteerRequest, frozen=True, kw_only=True):
    prompt: Annotated[str, Meta(min_length=1)]


class Said(Strict, frozen=True, kw_only=True):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatBody(SteerRequest, frozen=True, kw_only=True):
    prompt: Annotated[list[Said], Meta(min_length=1, max_length=MESSAGES_MAX)]
    steer_special_tokens: bool
    is_assistant_axis: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Answer:
    """Of one type: its text, the text that the model was given, and what steering did."""

    kind: SteerType
    text: str
    given: str
    steering: Document | None

    def document(self, **fields: Any) -> Document:
        return {"type": self.kind, **fields, **({} if self.steering is None else {"steering": self.steering})}


async def completion(request: web.Request) -> web.Response:
    body = decode(await read_body(request), CompletionBody)
    answers = await _answers(request, body)
    return json_response({"outputs": [one.document(output=one.given + one.text) for one in answers]})


async def completion_chat(request: web.Request) -> web.Response:
    body = decode(await read_body(request), ChatBody)
    answers = await _answers(request, body)
    said: list[Document] = [asdict(message) for message in body.prompt]
    return json_response(
        {
            "outputs": [
                one.document(
                    raw=one.given + one.text, chat_template=[*said, {"role": "assistant", "content": one.text}]
                )
                for one in answers
            ],
            "input": {"raw": answers[0].given, "chat_template": said},
        }
    )


async def _answers(request: web.Request, body: CompletionBody | ChatBody) -> list[_Answer]:
    """One for each type, in their order; all are checked before the first one runs."""
    service = request.app[SERVICE]
    service.refuse_if_draining()
    served = service.served(body.model)
    plans = await asyncio.to_thread(_plans, body, served.loaded, service.store)
    answers = []
    for kind, planned in zip(body.types, plans, strict=True):
        pieces, ended = await to_end(served, planned)
        _, steering = booked(request, planned, f"steer-{secrets.token_hex(12)}", ended)
        text = "".join(piece.text for piece in pieces) + ended.last.text
        answers.append(_Answer(kind=kind, text=text, given=_given(body, served.loaded), steering=steering))
    return answers


def _plans(body: CompletionBody | ChatBody, loaded: LoadedModel, store: VectorStore) -> list[Plan]:
    if body.stream:
        raise bad_request("answers come whole here", param="stream")
    if isinstance(body, ChatBody) and body.is_assistant_axis:
        raise bad_request("there are no readouts here", param="is_assistant_axis")
    if len(set(body.types)) < len(body.types):
        raise bad_request("one answer of each type", param="types")
    if "STEERED" in body.types and body.features is None:
        raise bad_request("a steered answer needs features", param="features")
    translation = translate(body, loaded, store)
    try:
        return [
            plan(_ours(body, translation.spec if kind == "STEERED" else None), loaded=loaded, store=store)
            for kind in body.types
        ]
    except ApiError as error:
        theirs = translation.theirs(error.param)
        raise ApiError(error.status, error.message, code=error.code, param=theirs) from error


def _ours(body: CompletionBody | ChatBody, spec: SteeringSpec | None) -> CompletionRequest | ChatRequest:
    fields: dict[str, Any] = {
        "model": body.model,
        "max_tokens": body.n_completion_tokens,
        "temperature": body.temperature,
        "seed": body.seed,
        "steering": spec,
    }
    if isinstance(body, CompletionBody):
        return CompletionRequest(prompt=body.prompt, **fields)
    return ChatRequest(messages=[Message(role=said.role, content=said.content) for said in body.prompt], **fields)


def translate(body: CompletionBody | ChatBody, loaded: LoadedModel, store: VectorStore) -> Translation:
    """Raises ApiError."""
    uses: list[VectorUse] = []
    params, apply = dict(_OURS), None
    if isinstance(body, ChatBody) and not body.steer_special_tokens:
        marks = Selector(tokens=list(loaded.tokenizer.special_ids))
        apply = Apply(exclude=Excluded(prompt=marks, generation=marks))
    for index, feature in enumerate(body.features or ()):
        place = f"features[{index}]"
        if feature.model != body.model:
            raise bad_request("a feature of another model", param=f"{place}.model")
        stored = store.get(feature.source)
        if stored is None:
            message = f"no steering vector {feature.source!r}"
            raise bad_request(message, param=f"{place}.source", code="unknown_vector")
        for use in _uses(feature, stored, body, apply, place):
            ours = f"steering.vectors[{len(uses)}]"
            names = {"id": "source", "scale": "strength", "params.feature": "index"}
            params |= {ours: place} | {f"{ours}.{name}": f"{place}.{theirs}" for name, theirs in names.items()}
            uses.append(use)
    return Translation(spec=SteeringSpec(vectors=uses), params={**params, "steering": "features"})


def _uses(
    feature: Feature, stored: StoredVector, body: SteerRequest, apply: Apply | None, place: str
) -> list[VectorUse]:
    strength = body.strength_multiplier * feature.strength
    if stored.kind is Kind.SAE:
        if body.steer_method == "ORTHOGONAL_DECOMP":
            message = "of a dictionary's feature only SIMPLE_ADDITIVE is known here"
            raise bad_request(message, param="steer_method", code="wrong_kind")
        scale = strength / _norm(stored, "decoder", feature.index) if body.normalize_steering else strength
        params = {"feature": feature.index, "mode": "add"}
        return [VectorUse(id=stored.id, op="sae", scale=scale, apply=apply, params=params)]
    if stored.kind is not Kind.DIRECTION:
        message = f"{stored.id!r} is a {stored.kind.value}, not a direction or a dictionary"
        raise bad_request(message, param=f"{place}.source", code="wrong_kind")
    if feature.index != 0:
        raise bad_request("a direction has the index 0 alone", param=f"{place}.index", code="bad_feature")
    if body.steer_method == "ORTHOGONAL_DECOMP":  # (I − P)h + strength · Ph, whatever the direction's length
        return [VectorUse(id=stored.id, op="scale_projection", scale=strength, apply=apply)]
    if not body.normalize_steering:
        return [VectorUse(id=stored.id, op="add", scale=strength, apply=apply)]
    return [  # each layer's vector has a length of its own
        VectorUse(
            id=stored.id,
            op="add",
            scale=strength / _norm(stored, f"direction.{layer}"),
            layers=[layer],
            apply=apply,
        )
        for layer in stored.layers
    ]


def _norm(stored: StoredVector, name: str, row: int | None = None) -> float:
    """Of a stored vector. A feature that does not exist is refused later, by its number."""
    tensor = stored.tensors[name]
    if row is not None:
        tensor = tensor[min(row, tensor.shape[0] - 1)]
    return float(tensor.double().norm()) or 1.0


def _given(body: CompletionBody | ChatBody, loaded: LoadedModel) -> str:
    if isinstance(body, CompletionBody):
        return body.prompt
    return loaded.template.render([asdict(message) for message in body.prompt])
