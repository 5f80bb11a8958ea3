"""A model server of its own for one evaluation: started, asked over HTTP, and ended."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
READY_S_MAX = 1800.0  # a quantised file is unpacked first, on however busy a machine
JOB_S_MAX = 3 * 3600.0
_POLL_S = 1.0


class EvaluationError(Exception):
    """The server did not start, refused, or failed a job. The message is its own."""


class Server:
    """What is asked of it, at `address` (host:port). A connection for each question: jobs leave minutes between them."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._ask("POST", path, json.dumps(body).encode())

    def delete(self, path: str) -> dict[str, Any]:
        return self._ask("DELETE", path, None)

    def job(self, path: str, body: dict[str, Any], *, progress: Callable[[float], None]) -> dict[str, Any]:
        """Start a job, wait for its end, return its result. Raises EvaluationError if it fails."""
        job = self.post(path, body)
        deadline_s = time.monotonic() + JOB_S_MAX
        while job["status"] in ("queued", "running"):
            if time.monotonic() > deadline_s:
                raise EvaluationError(f"{path}: not done after {JOB_S_MAX / 3600:g} hours")
            time.sleep(_POLL_S)
            job = self.get(f"/v1/jobs/{job['id']}")
            progress(job["progress"])
        if job["status"] != "succeeded":
            raise EvaluationError(f"{path}: {job['status']}: {(job['error'] or {}).get('message')}")
        result: dict[str, Any] = job["result"]
        return result

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            document: dict[str, Any] = json.load(answer)
        finally:
            connection.close()
        if answer.status >= 400:
            raise EvaluationError(f"{path}: {document['error']['message']}")
        return document


@contextmanager
def serving(model: Path, directory: Path, *, options: list[str]) -> Iterator[Server]:
    """`python -m inference serve`, with these options, on a free port until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "inference", "serve", "--model", str(model), "--listen", address]
    command += ["--state", str(directory / "state"), *options]
    log = directory / "inference.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file, env=dict(os.environ))
    try:
        server = Server(address)
        _until_ready(server, process, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise EvaluationError(f"the model server ended:\n{log.read_text()[-2000:]}")
        try:
            server.get("/readyz")
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise EvaluationError("the model server is not ready")
