"""`POST /v1/completions`: the OpenAI text completion dialect, streamed and not. One prompt, one answer."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.wire.chat import usage_wanted
from gateway.wire.chat_answer import usage_body
from gateway.wire.dialect import Call, Identity, ModelRules
from gateway.wire.errors import error_event, refusal_of
from gateway.wire.fields import (
    Sampling,
    answer_bytes_max,
    fingerprint,
    in_own_spelling,
    parse,
    tokens_max,
    upstream_fields,
)
from gateway.wire.generation import Heeded, Room, StreamDecoder, WholeDecoder
from gateway.wire.steering_report import steering_body
from gateway.wire.steering_spec import contradiction
from policy.refusal import Refused
from policy.release import Ending, Release

UPSTREAM_PATH = "/v1/completions"


class CompletionRequest(Sampling, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The allow-list of a text completion request."""

    prompt: Annotated[str, Meta(min_length=1)]


_REQUEST = msgspec.json.Decoder(CompletionRequest)


def parse_request(body: bytes) -> CompletionRequest | Refused:
    """A client's body as a checked request, or what is wrong with it."""
    request = parse(body, _REQUEST)
    if isinstance(request, Refused):
        return request
    return contradiction(request.steering) or in_own_spelling(request)


def sanitise(request: CompletionRequest, rules: ModelRules, identity: Identity, *, tenant: str) -> Call | Refused:
    """The call for one backend, built field by field from the checked request."""
    tokens = tokens_max(request, rules)
    if isinstance(tokens, Refused):
        return tokens
    fields = upstream_fields(request, tokens=tokens, seed=identity.seed, rules=rules, tenant=tenant)
    fields["prompt"] = request.prompt
    stream = bool(request.stream)
    steered = fingerprint(request, tenant=tenant)
    usage = usage_wanted(request, rules)
    heeded = Heeded(usage=usage and rules.usage_claimed, steering=steered is not None, gates=request.gates)
    renderer = CompletionRenderer(
        identity=identity, model=rules.name, stream=stream, usage=usage, fingerprint=steered or ""
    )
    return Call(
        model=rules.name,
        stream=stream,
        upstream_method="POST",
        upstream_path=UPSTREAM_PATH,
        upstream_body=msgspec.json.encode(fields),
        answer_bytes_max=answer_bytes_max(tokens),
        tools_declared=frozenset(),
        decoder=(StreamDecoder if stream else WholeDecoder)(heeded, Room(tokens=tokens, token_ids=rules.token_ids)),
        renderer=renderer,
    )


class CompletionRenderer:
    """Releases as `text_completion` objects. Streamed and whole answers differ only in framing."""

    def __init__(self, *, identity: Identity, model: str, stream: bool, usage: bool, fingerprint: str) -> None:
        self.content_type = "text/event-stream; charset=utf-8" if stream else "application/json"
        self._stream = stream
        self._usage = usage
        self._fingerprint = fingerprint
        self._head: dict[str, Any] = {
            "id": f"cmpl-{identity.id}",
            "object": "text_completion",
            "created": identity.created_s,
            "model": model,
        }

    def release(self, release: Release) -> bytes:
        """One release; whole answers have exactly one."""
        if not self._stream:
            return self._object(release.text, release.ending, whole=True)
        refused = refusal_of(release.ending) if release.ending is not None else None
        out = []
        if refused is not None:
            if release.text:
                out.append(self._event(self._object(release.text, None)))
            out.append(error_event(refused))
        else:
            out.append(self._event(self._object(release.text, release.ending)))
            if release.ending is not None:
                out += self._closing(release.ending)
        return b"".join(out)

    def _closing(self, ending: Ending) -> list[bytes]:
        out = []
        if self._usage and ending.usage is not None:
            out.append(
                self._event(msgspec.json.encode({**self._head, "choices": [], "usage": usage_body(ending.usage)}))
            )
        return [*out, b"data: [DONE]\n\n"]

    def _object(self, text: str, ending: Ending | None, *, whole: bool = False) -> bytes:
        finish = ending.outcome.value if ending is not None else None
        body = {**self._head, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]}
        if whole and self._usage and ending is not None and ending.usage is not None:
            body["usage"] = usage_body(ending.usage)
        if ending is not None and ending.numbers is not None:
            body["steering"] = steering_body(ending.numbers, flags=ending.flags, fingerprint=self._fingerprint)
        return msgspec.json.encode(body)

    @staticmethod
    def _event(body: bytes) -> bytes:
        return b"data: " + body + b"\n\n"
