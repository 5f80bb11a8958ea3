"""Usage as the gateway counts it: a function of the request and of what was released, so it costs no bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import Struct

from gateway.ports import TokenCounter
from policy.release import Release, Usage


class _Message(Struct):
    content: Any = None


class _Request(Struct):
    messages: list[_Message] = []
    prompt: str = ""


class Recount:
    """The usage of one answer. The prompt's tokens are those of the request's texts, without a chat template's own."""

    def __init__(self, counter: TokenCounter, request: bytes) -> None:
        self._counter = counter
        self._request = request
        self._said: list[str] = []

    def usage(self, release: Release) -> Release:
        """The release as it is rendered: with the usage recounted if it is the last one of a whole answer."""
        self._said += (release.reasoning or "", release.text)
        ending = release.ending
        if ending is None or not ending.outcome.complete:
            return release
        said = "".join(self._said) + "".join(call.arguments for call in ending.tool_calls)
        usage = Usage(prompt_tokens=self._prompt_tokens(), completion_tokens=self._counter.tokens(said))
        return replace(release, ending=replace(ending, usage=usage))

    def _prompt_tokens(self) -> int:
        request = msgspec.json.decode(self._request, type=_Request)
        texts = [_plain(message.content) for message in request.messages]
        return sum(self._counter.tokens(text) for text in (request.prompt, *texts) if text)


def recounts(counters: Mapping[str, TokenCounter], *, model: str, request: bytes) -> Recount | None:
    """A recount, if the model's policy asks for one."""
    counter = counters.get(model)
    return Recount(counter, request) if counter is not None else None


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""
