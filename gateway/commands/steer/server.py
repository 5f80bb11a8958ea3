"""A steering server over HTTP: a gateway, or a model server without one. Asks, reads within limits, says what was refused."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException, HTTPResponse
from typing import IO, Any
from urllib.parse import quote

import msgspec

SILENCE_S_MAX = 120.0  # of a socket: a whole answer without a stream is silent until it is there
ANSWER_BYTES_MAX = 64 * 1024 * 1024  # 1,024 vectors with their figures of 100 layers are 40 MiB
EVENT_BYTES_MAX = 4 * 1024 * 1024  # one line of a stream: the result of a job with many candidates


class Refused(Exception):
    """What the server said instead of an answer, in its own words."""

    def __init__(self, message: str, *, status: int, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param

    def document(self) -> dict[str, Any]:
        """As OpenAI's error."""
        return {"error": {"message": self.message, "status": self.status, "code": self.code, "param": self.param}}


class Unreachable(Exception):
    """Nobody answered, or not in HTTP, or the answer broke off; the message has the address."""


class Undecided(Exception):
    """The command line leaves something open that only its user can say."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """`key` None: nothing is sent as one. `model` None: the only one there is."""

    url: str
    key: str | None
    model: str | None


class Server:
    """One server. Paths begin with /v1; documents are what JSON says."""

    def __init__(self, address: Address) -> None:
        self.url = address.url.rstrip("/")
        self._key = address.key
        self._wanted_model = address.model
        self._opener = urllib.request.build_opener(_NoRedirect)

    @cached_property
    def capabilities(self) -> dict[str, Any] | None:
        """What a model server says it can do. A gateway has no such route: None."""
        try:
            found = self.get("/v1/capabilities")
        except Refused as refused:
            if refused.status in (401, 404):
                return None
            raise
        return found if found.get("object") == "capabilities" else None

    @property
    def is_gateway(self) -> bool:
        """A gateway wants to be told the model, chooses seeds, and keeps tensors and provenance to itself."""
        return self.capabilities is None

    @cached_property
    def model(self) -> str:
        """The model that is meant. Raises `Undecided` if there are several and none was named."""
        if self._wanted_model is not None:
            return self._wanted_model
        if self.capabilities is not None:
            return str(self.capabilities["model"]["id"])
        names = [str(model["id"]) for model in self.get("/v1/models")["data"]]
        if len(names) != 1:
            raise Undecided(f"choose one with --model: {', '.join(names) or 'this key may use none'}")
        return names[0]

    def get(self, path: str) -> dict[str, Any]:
        """Raises `Refused`, `Unreachable`."""
        return self._document("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises `Refused`, `Unreachable`."""
        return self._document("POST", path, body)

    def delete(self, path: str) -> dict[str, Any]:
        """Raises `Refused`, `Unreachable`."""
        return self._document("DELETE", path, None)

    def events(self, path: str, body: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """The documents of a stream of server-sent events, until it ends. Raises `Refused` (also for an error event)."""
        with self._open("GET" if body is None else "POST", path, body) as answer:
            for line in self._lines(answer):
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue
                document = _decoded(data, self.url)
                if "error" in document and "object" not in document:
                    raise _refused(document, status=answer.status)
                yield document

    def vectors(self) -> list[dict[str, Any]]:
        """All that the key may see."""
        found: list[dict[str, Any]] = self.get(self.of_model("/v1/steering/vectors"))["data"]
        return found

    def vector(self, name: str) -> dict[str, Any]:
        """What is known of one."""
        return self.get(self.vector_path(name))

    def vector_path(self, name: str) -> str:
        """Where a vector is."""
        return self.of_model(f"/v1/steering/vectors/{quote(name, safe='')}")

    def of_model(self, path: str) -> str:
        """A path, with the model in the query where the server wants it."""
        return f"{path}?model={quote(self.model, safe='')}" if self.is_gateway else path

    def request(self, **fields: Any) -> dict[str, Any]:
        """A steering endpoint's body: a gateway wants the model in it, a model server has one and refuses the field."""
        given = {name: value for name, value in fields.items() if value is not None}
        return {"model": self.model, **given} if self.is_gateway else given

    def _document(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        with self._open(method, path, body) as answer:
            try:
                data = answer.read(ANSWER_BYTES_MAX)
            except (OSError, HTTPException) as fault:
                raise Unreachable(f"{self.url}: the answer broke off ({_reason(fault)})") from fault
        return _decoded(data, self.url)

    def _open(self, method: str, path: str, body: dict[str, Any] | None) -> HTTPResponse:
        headers = {"Accept": "application/json, text/event-stream"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), "application/json"
        try:
            request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)  # noqa: S310
            answer: HTTPResponse = self._opener.open(request, timeout=SILENCE_S_MAX)
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(_error_body(error), status=error.code) from error
        except (OSError, HTTPException, ValueError) as fault:
            raise Unreachable(f"{self.url}: {_reason(fault)}") from fault
        return answer

    def _lines(self, answer: HTTPResponse) -> Iterator[bytes]:
        while True:
            try:
                line = answer.readline(EVENT_BYTES_MAX)
            except (OSError, HTTPException, ValueError) as fault:
                raise Unreachable(f"{self.url}: the stream broke off ({_reason(fault)})") from fault
            if not line:
                return
            yield line


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Neither server redirects; whoever does shall not be sent the key."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _decoded(data: bytes, url: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise Unreachable(f"{url}: the answer is not JSON; is this a steering server?") from fault


def _error_body(body: IO[bytes]) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body.read(EVENT_BYTES_MAX), type=dict[str, Any])
    except (OSError, HTTPException, msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _refused(body: dict[str, Any], *, status: int) -> Refused:
    error = body.get("error")
    if not isinstance(error, dict):
        return Refused(f"the server answered with status {status}", status=status)
    message = str(error.get("message") or f"the server answered with status {status}")
    return Refused(message, status=status, code=error.get("code"), param=error.get("param"))


def _reason(fault: Exception) -> str:
    return str(fault.reason if isinstance(fault, urllib.error.URLError) else fault) or type(fault).__name__
