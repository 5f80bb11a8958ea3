"""The locustfile: users who chat, wait for whole answers, or use tools, each as one of many tenants.

`python -m loadtests.load` starts it headless beside a gateway. By itself, with locust's own page and options:
`locust -f loadtests/load/users.py --host http://127.0.0.1:8080 --key YOUR_KEY --model YOUR_MODEL --unchecked`.

Locust times a streamed POST only until its head, so streams fire events of their own: `TTFT` for the first piece of text
and `total` for the whole answer. Refusals are rows of their own and no failures: a gateway that refuses does its work.
"""

import itertools
import json
import random
import time
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from typing import Any

from locust import FastHttpUser, LoadTestShape, between, events, task
from locust.env import Environment

from loadtests.load.script import Kind, Script, heard
from loadtests.load.shapes import SHAPES, users_at

REFUSALS = (429, 503)
THINK_S = (0.05, 0.4)  # between an answer and the next question: people take longer, and are more
RETRY_S = 0.5  # after a refusal

numbers = itertools.count()
heard_bytes: Counter[str] = Counter()  # by kind of answer
asked: Counter[str] = Counter()  # by tenant's key


@events.init_command_line_parser.add_listener
def options(parser: ArgumentParser) -> None:
    """Beyond locust's own."""
    parser.add_argument("--key", action="append", default=[], help="a tenant's API key; repeat for many tenants")
    parser.add_argument("--model", default="load", help="that is asked for")
    parser.add_argument("--shape", choices=list(SHAPES), default="steady", help="how many users when")
    parser.add_argument("--pieces", type=int, default=60, help="tokens of a streamed answer")
    parser.add_argument("--pace-ms", type=int, default=20, help="between two of them, where the upstream is scripted")
    parser.add_argument("--unchecked", action="store_true", help="the upstream is a real engine: answers are its own")
    parser.add_argument("--results", default="", help="file for what was counted")


class Shape(LoadTestShape):
    """Takes --users and --run-time as they are given."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """How many users there are now, and how fast they come."""
        given = self.runner.environment.parsed_options
        seconds = float(given.run_time or 60)
        at_s = self.get_run_time()
        if at_s > seconds:
            return None
        users = users_at(given.shape, at_s, seconds=seconds, users=given.num_users or 1)
        return users, float(max(users, given.spawn_rate or 1))


class Asking(FastHttpUser):
    """Asks and judges; what is asked is the subclasses' affair."""

    abstract = True
    wait_time = between(*THINK_S)
    network_timeout = 120.0
    connection_timeout = 20.0

    def on_start(self) -> None:
        """Every user is one tenant's."""
        self.given = self.environment.parsed_options
        self.key = random.choice(self.given.key or [""])

    def ask(self, kind: Kind, *, pieces: int) -> None:
        """One question and its answer."""
        script = Script(number=next(numbers), kind=kind, pieces=pieces, pace_ms=self.given.pace_ms)
        asked[self.key] += 1
        headers = {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        }
        name = f"{kind.value}: head" if kind is not Kind.JSON else kind.value
        sent_s = time.perf_counter()
        with self.client.post(
            "/v1/chat/completions",
            data=script.body(self.given.model),
            headers=headers,
            name=name,
            stream=True,
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                self._refused(response)
                return
            body, first_s = self._read(response)
            total_s = time.perf_counter() - sent_s
            complaint = self._complaint(script, body)
            if kind is Kind.JSON:
                response.request_meta["response_time"] = total_s * 1e3  # locust's ends with the head
                response.request_meta["response_length"] = len(body)
            if complaint:
                response.failure(complaint)
            else:
                response.success()
        if kind is not Kind.JSON and not complaint:
            if first_s is not None:
                self._event("TTFT", kind, (first_s - sent_s) * 1e3, 0)
            self._event("total", kind, total_s * 1e3, len(body))

    def _read(self, response: Any) -> tuple[bytes, float | None]:
        """The body line by line, and when the first text was there."""
        body, first_s = bytearray(), None
        try:
            while line := response.stream.readline(b"\n"):
                body += line
                if first_s is None and (b'"content":"' in line or b'"arguments":"' in line) and b':""' not in line:
                    first_s = time.perf_counter()
            body += response.stream.read()
        except (OSError, ValueError) as error:
            body += f"\nbroken: {error!r}".encode()
        return bytes(body), first_s

    def _complaint(self, script: Script, body: bytes) -> str:
        """What is wrong with an answer, or nothing."""
        if script.kind is not Kind.JSON and b"data: [DONE]" not in body:
            return f"stream without end: {body[-120:]!r}"
        try:
            text = heard(body, script.kind)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return f"no answer: {error!r}"
        heard_bytes[script.kind.value] += len(text.encode())
        if not self.given.unchecked and text != "".join(script.spoken()):
            return f"not what was said: {text[:60]!r}"
        return ""

    def _refused(self, response: Any) -> None:
        """A row of its own for each status and code."""
        try:
            code = str(json.loads(response.content or b"")["error"]["code"])
        except (ValueError, LookupError, TypeError):
            code = "?"
        if response.status_code in REFUSALS:
            response.request_meta.update(request_type="refused", name=f"{response.status_code} {code}")
            response.success()
            time.sleep(random.uniform(0.5, 1.5) * RETRY_S)  # locust has made this one gevent's
        else:
            response.failure(f"status {response.status_code} {code}")

    def _event(self, kind: str, what: Kind, time_ms: float, size: int) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=what.value,
            response_time=time_ms,
            response_length=size,
            exception=None,
            context=self.context(),
        )


class ChatUser(Asking):
    """Reads along as the answer comes."""

    weight = 6

    @task
    def chat(self) -> None:
        """Of different lengths."""
        self.ask(Kind.STREAM, pieces=random.randint(self.given.pieces // 3, self.given.pieces))


class BatchUser(Asking):
    """Wants the whole answer."""

    weight = 3

    @task
    def complete(self) -> None:
        """Short ones."""
        self.ask(Kind.JSON, pieces=random.randint(10, self.given.pieces))


class ToolUser(Asking):
    """Has tools called."""

    weight = 1

    @task
    def call(self) -> None:
        """Arguments come in pieces."""
        self.ask(Kind.TOOL, pieces=random.randint(5, self.given.pieces))


@events.quitting.add_listener
def write_results(environment: Environment, **_: Any) -> None:
    """For the program that started this, if one did."""
    path = environment.parsed_options.results if environment.parsed_options else ""
    if not path:
        return
    rows = [
        {
            "type": entry.method,
            "name": entry.name,
            "count": entry.num_requests,
            "failures": entry.num_failures,
            "p50_ms": entry.get_response_time_percentile(0.5),
            "p95_ms": entry.get_response_time_percentile(0.95),
            "p99_ms": entry.get_response_time_percentile(0.99),
            "per_s": entry.total_rps,
        }
        for entry in environment.stats.entries.values()
    ]
    errors = [
        f"{error.occurrences} × {error.method} {error.name}: {error.error}"
        for error in environment.stats.errors.values()
    ]
    results = {
        "rows": rows,
        "errors": errors,
        "heard_bytes": heard_bytes,
        "tenants": len(asked),
        "asked": sum(asked.values()),
    }
    Path(path).write_text(json.dumps(results))
    environment.process_exit_code = 0  # what is too much is for whoever reads this to say
