"""The `Scorer` port over HTTP: asks `python -m inference score` for codelengths, and believes only what can be true.

The scorer is trusted to say what the language model says. It is not trusted to be up, quick, or whole: whatever it does, an
answer costs at most what it cost before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from gateway.ports import ScorerFailed, ToScore
from policy.rules import Scorer

CONNECT_S_MAX = 5.0
SCORE_S_MAX = 120.0  # sixteen long answers on a small machine
REPLY_BYTES_MAX = 1024 * 1024
UNIX_PREFIX = "unix:"


class _Message(Struct):
    role: str
    content: Any = None


class _Request(Struct):
    """What of an upstream request the language model is told."""

    messages: list[_Message] | None = None
    prompt: str | None = None


class _Score(Struct):
    bits: int | None = None


class _Reply(Struct):
    code: str
    items: list[_Score]


class HttpScorer:
    """One scorer. Its first answer fixes the code, unless the policy does: a later one under another code is not believed."""

    def __init__(self, rules: Scorer) -> None:
        connector: aiohttp.BaseConnector
        if rules.address.startswith(UNIX_PREFIX):
            self._base = "http://scorer"
            connector = aiohttp.UnixConnector(path=rules.address.removeprefix(UNIX_PREFIX))
        else:
            self._base = rules.address
            connector = aiohttp.TCPConnector()
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=SCORE_S_MAX, sock_connect=CONNECT_S_MAX),
        )
        self.code = rules.code

    async def score(self, items: Sequence[ToScore]) -> Sequence[int | None]:
        """See `Scorer.score`."""
        body = msgspec.json.encode({"items": [_question(item) for item in items]})
        try:
            async with self._session.post(self._base + "/score", data=body, allow_redirects=False) as response:
                reply = await response.content.read(REPLY_BYTES_MAX)
                if response.status != 200:
                    raise ScorerFailed("protocol")
        except TimeoutError as fault:
            raise ScorerFailed("timeout") from fault
        except aiohttp.ClientConnectorError as fault:
            raise ScorerFailed("unreachable") from fault
        except aiohttp.ClientError as fault:
            raise ScorerFailed("protocol") from fault
        return self._believed(reply, len(items))

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def _believed(self, data: bytes, count: int) -> list[int | None]:
        try:
            reply = msgspec.json.decode(data, type=_Reply)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise ScorerFailed("nonsense") from fault
        if len(reply.items) != count or any(score.bits is not None and score.bits < 1 for score in reply.items):
            raise ScorerFailed("nonsense")  # not even an empty text costs nothing: its end is a symbol
        if self.code is None:
            self.code = reply.code
        if reply.code != self.code:
            raise ScorerFailed("other_code")
        return [score.bits for score in reply.items]


def _question(item: ToScore) -> dict[str, Any]:
    request = msgspec.json.decode(item.request, type=_Request)  # the gateway made it: it parses
    question: dict[str, Any] = {"text": item.text.decode()}
    if request.messages is not None:
        question["messages"] = [
            {"role": message.role, "content": _plain(message.content)} for message in request.messages
        ]
    else:
        question["prompt"] = request.prompt or ""
    return question


def _plain(content: Any) -> str:
    """A message's text; its parts joined."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""
