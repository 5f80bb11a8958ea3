"""A steering server that says what a test wrote down, and remembers what it was asked."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateway.__main__ import main

CAPABILITIES = {
    "object": "capabilities",
    "model": {"id": "tiny", "layers": 30, "digest": "d" * 64, "dtype": "float32"},
}
Answer = tuple[int, Any]


class Script:
    """`answers`: by method and path what is said, one after the other, the last one again and again. A list is a
    stream, a string is no JSON."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.keys: set[str | None] = set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def says(self, route: str, *answers: Any, status: int = 200) -> None:
        self.answers[route] = [(status, answer) for answer in answers]

    def refuses(self, route: str, status: int, code: str, message: str, param: str | None = None) -> None:
        self.says(route, {"error": {"message": message, "code": code, "param": param}}, status=status)

    def bodies(self, route: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == route]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _next(self, route: str, body: Any, key: str | None) -> Answer:
        with self._lock:
            self.asked.append((route, body))
            self.keys.add(key)
            answers = self.answers.get(route)
            if answers is None:
                return 404, {"error": {"message": "There is no such route here.", "code": "unknown_url"}}
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        script = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, answer = script._next(f"{self.command} {self.path}", body, self.headers.get("Authorization"))
                if callable(answer):
                    answer = answer(body)
                streamed = isinstance(answer, list)
                events = [f"data: {json.dumps(event)}\n\n" for event in answer] if streamed else []
                text = "".join(events) if streamed else answer if isinstance(answer, str) else json.dumps(answer)
                self.send_response(status)
                self.send_header("Content-Type", "text/event-stream" if streamed else "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@pytest.fixture
def script() -> Iterator[Script]:
    """A model server."""
    script = Script()
    script.says("GET /v1/capabilities", CAPABILITIES)
    yield script
    script.close()


@pytest.fixture
def gateway_script(script: Script) -> Script:
    """The same as a gateway: it has no capabilities, and one model."""
    del script.answers["GET /v1/capabilities"]
    script.says("GET /v1/models", {"object": "list", "data": [{"id": "big"}]})
    return script


Steer = Callable[..., int]


@pytest.fixture
def steer(script: Script, monkeypatch: pytest.MonkeyPatch) -> Steer:
    """`weir steer …` against the script; returns its exit status."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("no_proxy", "*")
    for name in ("WEIR_URL", "WEIR_KEY"):
        monkeypatch.delenv(name, raising=False)

    def steer(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["weir", "steer", *arguments, "--url", script.url])
        return main()

    return steer


def job(status: str, progress: float = 1.0, **rest: Any) -> dict[str, Any]:
    return {"id": "job-1", "object": "job", "kind": "extract", "status": status, "progress": progress, **rest}


EXTRACTED = {
    "layers": [
        {"layer": 6, "norm": 2.0, "residual_norm": 80.0, "mean_pairwise_cosine": 0.1, "d_prime": 1.25},
        {"layer": 14, "norm": 4.0, "residual_norm": 130.0, "mean_pairwise_cosine": None, "d_prime": 3.5},
    ],
    "selected_layer": 14,
    "position": None,
}
