"""Every query of every board and rule, asked of a real Prometheus that scrapes a gateway and an inference server under load."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.dashboard import Board, Panel
from deploy.grafana.generate import BOARDS
from tests.e2e.backend import Backend, Exchange, finish_event, rest, say, text_event
from tests.e2e.conftest import prepared_model  # noqa: F401  a fixture
from tests.e2e.model_server import model_server
from tests.e2e.processes import ALICE, BOB, Gateway, policy, until
from tests.e2e.test_scorer import FakeScorer, scored_by
from tests.e2e.test_witnesses import Neighbours
from tests.prometheus import SCRAPE_S, Prometheus

LOAD_S = 15
D_MODEL = 576
WORDS = "The weir holds the river back and measures what passes over it. "


def rules_of(directory: Any, backend: Backend, scorer: FakeScorer, neighbours: Neighbours) -> dict[str, Any]:
    """Two models, and tenants with shares and budgets of their own, one of which is soon used up."""
    rules = policy(backend.url, directory)
    rules["models"]["m"]["budgets"].append({"window": "1d", "time_to_theft": "30d"})
    rules["models"]["n"] = copy.deepcopy(rules["models"]["m"]) | {
        "budgets": [{"window": "sliding 1d", "time_to_theft": "5y"}]
    }
    rules["tenants"]["alice"]["models"] = ["m", "n"]
    rules["tenants"]["alice"]["share"] = "40%"
    rules["tenants"]["bob"]["budget"] = {"window": "30d", "bytes": "4kB"}
    scored_by(scorer.url)(rules)
    neighbours.rules(rules, least="any")
    rules["audit"]["witnesses"]["within"] = "20s"
    return rules


async def talk(exchange: Exchange) -> None:
    """Most requests are answered well; some end badly in each of the ways that have a metric."""
    number = int(exchange.request.json["messages"][0]["content"].split()[-1])
    if number % 9 == 0:
        return exchange.abort()
    if not exchange.request.json.get("stream"):
        return await say(WORDS * (300 if number % 7 == 0 else 3))(exchange)
    await exchange.begin()
    for word in WORDS.split():
        await exchange.chunk(text_event(f"{word} "))
        await asyncio.sleep(0.01)
    await rest(exchange, ending=[finish_event(), b"data: [DONE]\n\n"])
    return None


def answer_of_scorer(question: dict[str, Any]) -> bytes:
    """Now and then nonsense; and slow enough that answers wait."""
    time.sleep(0.2)
    items = [{"bits": 50 + len(item["text"]) // 2, "tokens": 9} for item in question["items"]]
    return json.dumps({"code": "ab" * 32, "items": items if time.time_ns() % 5 else items[1:]}).encode()


class Load:
    """Clients of every kind, until it is closed."""

    def __init__(self, gateway: Gateway, inference_url: str) -> None:
        self._gateway, self._inference_url = gateway, inference_url
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(5)
        kinds = (self._ask_alice, self._ask_alice, self._ask_bob, self._ask_wrongly, self._ask_inference)
        self._running = [self._threads.submit(self._repeat, kind) for kind in kinds]

    def close(self) -> None:
        self._over.set()
        for running in self._running:
            running.result()
        self._threads.shutdown()

    def _repeat(self, ask: Callable[[int], None]) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            ask(number)

    def _ask_alice(self, number: int) -> None:
        self._gateway.ask(f"Number {number}", key=ALICE, model="mn"[number % 3 == 0], stream=number % 2 == 0)

    def _ask_bob(self, number: int) -> None:
        self._gateway.ask(f"Number {number}", key=BOB)
        time.sleep(0.05)

    def _ask_wrongly(self, number: int) -> None:
        self._gateway.ask(f"Number {number}", key="nobody's" if number % 2 else ALICE, model="of nobody")
        time.sleep(0.05)

    def _ask_inference(self, number: int) -> None:
        post(self._inference_url, "/v1/chat/completions", self._chat(number))

    def _chat(self, number: int) -> dict[str, Any]:
        body = {"model": "smollm2-135m-instruct", "max_tokens": 8}
        steering = {"steering": {"vectors": [{"id": "up", "op": "add", "scale": 0.5}]}} if number % 2 else {}
        return body | steering | {"messages": [{"role": "user", "content": "Count to three."}]}


def post(url: str, path: str, body: dict[str, Any]) -> None:
    asked = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        answer.read()


@pytest.fixture(scope="module")
def inference(prepared_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    with model_server(prepared_model, tmp_path_factory.mktemp("inference")) as address:
        yield address


@pytest.fixture(scope="module")
def prometheus(
    inference: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """It has scraped for a while, and scrapes on; what it scrapes is under load all the time."""
    directory = tmp_path_factory.mktemp("live")
    backend, scorer, neighbours = Backend(script=talk), FakeScorer(), Neighbours(directory)
    scorer.answer = answer_of_scorer
    gateway = Gateway(directory, rules_of(directory, backend, scorer, neighbours)).start()
    neighbours.know(gateway)
    until(lambda: gateway.metric("weir_audit_witnessed_timestamp_seconds") > 0, what="it is witnessed", seconds=30)
    post(inference, "/v1/steering/vectors", {"id": "up", "layer": 5, "vector": [0.1] * D_MODEL})
    targets = {"weir": f"127.0.0.1:{gateway.admin_port}", "inference": inference.removeprefix("http://")}
    server = Prometheus(directory / "prometheus", targets=targets)
    load = Load(gateway, inference)
    try:
        server.start()
        time.sleep(LOAD_S)
        yield server
    finally:
        load.close()
        server.close()
        gateway.close()
        neighbours.close()
        scorer.close()
        backend.close()


def test_both_are_scraped_and_nothing_of_theirs_is_left_out(prometheus: Prometheus) -> None:
    targets = prometheus.ask("targets")["activeTargets"]
    assert {(target["labels"]["job"], target["health"], target["lastError"]) for target in targets} == {
        ("weir", "up", ""),
        ("weir-inference", "up", ""),
    }


def test_every_rule_can_be_evaluated(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


PANELS = [(board, panel) for board in BOARDS for panel in board.panels]


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=lambda one: one.name if isinstance(one, Board) else one.title)
def test_every_query_of_a_panel_has_an_answer(prometheus: Prometheus, board: Board, panel: Panel) -> None:
    """None may be empty: the load does all that a panel shows."""
    for query in panel.queries:
        found = values(prometheus, panel, substituted(query.expr))
        assert any(math.isfinite(value) for value in found), f"nothing for {query.expr}"


@pytest.mark.parametrize(
    "variable",
    sorted({variable for board in BOARDS for variable in board.variables}, key=lambda variable: variable.name),
    ids=lambda variable: variable.name,
)
def test_every_variable_has_something_to_choose_from(prometheus: Prometheus, variable: Any) -> None:
    match = re.fullmatch(r"label_values\((.+), ([a-z]+)\)", variable.query)
    assert match is not None
    assert prometheus.ask(f"label/{match[2]}/values", **{"match[]": match[1]})


def test_a_query_that_asks_for_what_nobody_says_would_be_noticed(prometheus: Prometheus) -> None:
    assert values(prometheus, PANELS[0][1], "weir_of_nobody") == []
    with pytest.raises(AssertionError, match="parse error"):
        values(prometheus, PANELS[0][1], "sum by (weir")


def substituted(expr: str) -> str:
    """What Grafana would send, with everything chosen."""
    for name, value in {
        "$__rate_interval": f"{5 * SCRAPE_S}s",
        "$gateway": ".*",
        "$server": ".*",
        "$model": ".*",
        "$tenant": "alice",
    }.items():
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


def values(prometheus: Prometheus, panel: Panel, expr: str) -> list[float]:
    """All of a query's: now, or over the last seconds for curves."""
    now_s = time.time()
    if panel.kind == "timeseries":
        series = prometheus.ask("query_range", query=expr, start=now_s - 8, end=now_s, step=SCRAPE_S)["result"]
        return [float(value) for one in series for _, value in one["values"]]
    return [float(one["value"][1]) for one in prometheus.ask("query", query=expr)["result"]]
