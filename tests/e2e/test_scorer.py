"""A scorer refunds what its language model saves. Whatever else it does, charges stay sound and nothing waits for it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.backend import Backend, say
from tests.e2e.conftest import Start
from tests.e2e.processes import REPOSITORY, Gateway, environment, until

TEXT = "The river rises in the hills and runs to the sea. " * 12
Answer = Callable[[dict[str, Any]], bytes | None]
CODE = "ab" * 32


class FakeScorer:
    """Answers `POST /score` with whatever a test says; None never answers."""

    def __init__(self) -> None:
        self.answer: Answer = lambda question: json.dumps(
            {"code": CODE, "items": [{"bits": 100, "tokens": 9} for _ in question["items"]]}
        ).encode()
        self.questions: list[dict[str, Any]] = []
        self.released = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.questions.append(question)
                body = fake.answer(question)
                if body is None:
                    fake.released.wait(60)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def scorer() -> Iterator[FakeScorer]:
    fake = FakeScorer()
    yield fake
    fake.close()


def scored_by(address: str, **scorer: str) -> Callable[[dict[str, Any]], None]:
    def change(rules: dict[str, Any]) -> None:
        rules["meters"] = ["raw", "zstd", "language_model"]
        rules["scorer"] = {"address": address, **scorer}

    return change


def errors(gateway: Gateway, kind: str) -> float:
    return gateway.metric("weir_scorer_errors_total", kind=kind)


def test_the_language_models_price_is_what_an_answer_costs_in_the_end(
    backend: Backend, start: Start, scorer: FakeScorer
) -> None:
    # Arrange
    gateway = start(scored_by(scorer.url))
    backend.script = say(TEXT)

    # Act
    assert gateway.ask().status == 200
    until(lambda: gateway.metric("weir_refunded_bits_total", code="language_model") > 0, what="the second refund")

    # Assert: 100 bits of text and the price of one slot, one ending and the choices.
    assert 100 < gateway.used_bits() < 200
    (item,) = scorer.questions[0]["items"]
    assert item["text"] == TEXT
    assert item["messages"][-1]["role"] == "user"
    assert set(item) == {"text", "messages"}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"not json", "nonsense"),
        (b'{"code": "x", "items": []}', "nonsense"),
        (b'{"code": "x", "items": [{"bits": -5}]}', "nonsense"),
        (b'{"code": "x", "items": [{"bits": 0}]}', "nonsense"),
        (b'{"code": "x", "items": [{"bits": NaN}]}', "nonsense"),
        (b'{"code": "x", "items": [{"bits": 12.5}]}', "nonsense"),
        (b'{"code": "x", "items": [{"error": "too long"}]}', "unscored"),
    ],
)
def test_a_score_that_cannot_be_true_changes_nothing(
    backend: Backend, start: Start, scorer: FakeScorer, body: bytes, kind: str
) -> None:
    gateway = start(scored_by(scorer.url))
    backend.script = say(TEXT)
    scorer.answer = lambda _: body
    assert gateway.ask().status == 200
    until(lambda: errors(gateway, kind) == 1, what="the scorer's answer is counted")
    zstd_bits = gateway.used_bits()
    assert gateway.metric("weir_refunded_bits_total", code="zstd") > 0
    assert gateway.metric("weir_refunded_bits_total", code="language_model") == 0
    assert gateway.ask().status == 200
    assert gateway.used_bits() > zstd_bits


def test_a_score_larger_than_raw_changes_nothing(backend: Backend, start: Start, scorer: FakeScorer) -> None:
    gateway = start(scored_by(scorer.url))
    backend.script = say(TEXT)
    scorer.answer = lambda _: b'{"code": "x", "items": [{"bits": 123456789}]}'
    gateway.ask()
    until(lambda: scorer.questions, what="the scorer is asked")
    until(lambda: gateway.metric("weir_settle_backlog_answers", code="language_model") == 0, what="nothing waits")
    assert gateway.metric("weir_refunded_bits_total", code="language_model") == 0


def test_a_scorer_that_hangs_delays_nobody(backend: Backend, start: Start, scorer: FakeScorer) -> None:
    gateway = start(scored_by(scorer.url))
    backend.script = say(TEXT)
    scorer.answer = lambda _: None
    gateway.ask()
    until(lambda: scorer.questions, what="the scorer is asked")
    before_s = time.monotonic()
    for _ in range(20):
        assert gateway.ask().status == 200
    assert time.monotonic() - before_s < 10
    assert gateway.metric("weir_settle_backlog_answers", code="language_model") == 20
    assert gateway.stop() == 0


def test_a_scorer_that_is_away_costs_refunds_and_nothing_else(
    backend: Backend, start: Start, scorer: FakeScorer
) -> None:
    # Arrange: nobody listens.
    scorer.close()
    gateway = start(scored_by(scorer.url))
    backend.script = say(TEXT)

    # Act
    assert gateway.ask().status == 200
    until(lambda: errors(gateway, "unreachable") >= 1, what="the failure is counted")

    # Assert
    assert gateway.metric("weir_refunded_bits_total", code="zstd") > 0
    assert gateway.admin("/readyz")[0] == 200


def test_a_scorer_under_another_code_is_not_believed(backend: Backend, start: Start, scorer: FakeScorer) -> None:
    gateway = start(scored_by(scorer.url, code="cd" * 32))
    backend.script = say(TEXT)
    gateway.ask()
    until(lambda: errors(gateway, "other_code") == 1, what="the other code is counted")
    assert gateway.metric("weir_refunded_bits_total", code="language_model") == 0


def test_the_real_scorer_prices_english_far_below_zstd(
    backend: Backend, start: Start, prepared_model: Path, tmp_path: Path
) -> None:
    # Arrange
    socket = tmp_path / "score.sock"
    command = [sys.executable, "-m", "inference", "score", "--model", str(prepared_model), "--listen", f"unix:{socket}"]
    with (tmp_path / "score.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=log, stderr=log)
    try:
        until(socket.exists, what="the scorer listens", seconds=60)
        gateway = start(scored_by(f"unix:{socket}"))
        backend.script = say(TEXT)

        # Act
        gateway.ask()
        until(lambda: gateway.metric("weir_refunded_bits_total", code="language_model") > 0, what="a score", seconds=60)

        # Assert
        assert gateway.used_bits() < 1.0 * len(TEXT)
        gateway.stop()
        process.kill()
    finally:
        process.kill()
        process.wait()
