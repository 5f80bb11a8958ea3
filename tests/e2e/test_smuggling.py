"""Hostile bytes in both directions: what two parsers could read in two ways, no other side ever sees."""

from __future__ import annotations

import asyncio
import copy
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile

import pytest

from tests.e2e import payloads
from tests.e2e.backend import Backend, Exchange, Received, response, say, whole_body
from tests.e2e.hurried import program
from tests.e2e.payloads import MARKER, Payload, h11_answer, h11_reads, httptools_answer, httptools_reads, prompt
from tests.e2e.processes import Gateway, policy
from tests.e2e.wire import Connection, Response, chat, request

AT_ONCE = 24
SEGMENT_PAUSE_S = 0.01
LIMITS = {
    "CLIENT_HEAD_S_MAX": 0.4,
    "REQUEST_BODY_S_MAX": 0.4,
    "CLIENT_KEEPALIVE_S_MAX": 0.5,
    "CLIENT_LINGER_S_MAX": 0.2,
}
REQUESTS = payloads.requests(mutations=30)
RESPONSES = payloads.responses(mutations=150)


@pytest.fixture(scope="module")
def hurried_of_module(backend_of_module: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("hurried")
    rules = policy(backend_of_module.url, directory)
    waits = {"connect": "400ms", "first_byte": "400ms", "idle": "400ms", "total": "1500ms"}
    rules["models"]["m"]["timeouts"] = waits
    lanes = {f"lane{lane:02}": copy.deepcopy(rules["models"]["m"]) for lane in range(AT_ONCE)}
    rules["models"] |= lanes
    rules["tenants"]["alice"]["models"] += lanes
    gateway = Gateway(directory, rules, program=program(**LIMITS)).start()
    yield gateway
    gateway.close()


@pytest.fixture
def hurried(hurried_of_module: Gateway, backend: Backend) -> Iterator[Gateway]:
    """A gateway with short deadlines; after each test it must still serve, and have logged no failure of its own."""
    assert hurried_of_module.alive
    yield hurried_of_module
    backend.script = say("Still here.")
    answer = hurried_of_module.ask()
    assert (answer.status, answer.json["choices"][0]["message"]["content"]) == (200, "Still here.")
    hurried_of_module.idle()
    assert not [line for line in hurried_of_module.log() if "handling a request" in line["event"]]
    assert "Traceback" not in (hurried_of_module.directory / "gateway.log").read_text()


# Client to gateway.


@dataclass
class Sent:
    """A payload, everything that came back, and what other parsers make of it."""

    payload: Payload
    number: int
    answers: list[Response] = field(default_factory=list)
    ended: bool = False
    forwarded: list[Received] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        return b"".join(self.payload.numbered(self.number))

    @property
    def agreed(self) -> list[str | None]:
        """What a backend would be asked by each request that both parsers find alike; None for one that concerns none."""
        both = zip(h11_reads(self.data).requests, httptools_reads(self.data).requests, strict=False)
        return [prompt(one) for one, _ in takewhile(lambda pair: pair[0] == pair[1], both)]

    def __str__(self) -> str:
        seen = [prompt_of(received) for received in self.forwarded]
        answered = [(answer.status, answer.body[:120]) for answer in self.answers]
        readings = f"h11 {h11_reads(self.data)}, llhttp {httptools_reads(self.data)}"
        return f"{self.payload.name}: {readings}; forwarded {seen}; answered {answered}; ended {self.ended}"


def prompt_of(received: Received) -> str:
    return received.json["messages"][0]["content"]


def send(gateway: Gateway, payload: Payload, number: int) -> Sent:
    """Send it, read what comes, ask for something else on the same connection, and read to the end."""
    sent = Sent(payload, number)
    with gateway.connect() as connection:
        connection.socket.settimeout(4)
        try:
            for segment in payload.numbered(number):
                connection.send(segment)
                time.sleep(SEGMENT_PAUSE_S if len(payload.segments) > 1 else 0)
            sent.answers += answer_of(connection, bodiless=payload.segments[0].startswith(b"HEAD"))
            if sent.answers and not any(sent.agreed):  # one who was refused may say what it likes: nobody listens
                connection.send(request(body=chat(f"probe {number:04}"), key=gateway.key))
            while more := answer_of(connection):
                sent.answers += more
            sent.ended = True
        except (ConnectionResetError, BrokenPipeError):
            sent.ended = True
        except TimeoutError:
            pass
    return sent


def answer_of(connection: Connection, *, bodiless: bool = False) -> list[Response]:
    """The next answer that is none of the interim ones; none at the end of the connection."""
    try:
        while (answer := connection.head()).status < 200:
            pass
        answer.body = b"" if bodiless else b"".join(connection.pieces(answer))
    except ConnectionError as end:
        if not str(end).endswith("after b''"):
            raise AssertionError(f"part of an answer: {end}") from end
        return []
    return [answer]


@pytest.fixture(scope="module")
def all_sent(hurried_of_module: Gateway, backend_of_module: Backend) -> list[Sent]:
    """Every payload, sent once, and what the backend got of each."""
    backend_of_module.script, backend_of_module.exchanges = say("Hello."), []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        numbers = range(len(REQUESTS))
        all_sent = list(pool.map(lambda number: send(hurried_of_module, REQUESTS[number], number), numbers))
    hurried_of_module.idle()
    for received in backend_of_module.requests:
        all_sent[int(prompt_of(received)[-4:])].forwarded.append(received)
    return all_sent


def none_of(sent: list[Sent], wrong: Callable[[Sent], bool]) -> None:
    found = [str(item) for item in sent if wrong(item)]
    assert not found, f"{len(found)} of {len(sent)}:\n" + "\n".join(found[:20])


def test_there_are_enough_payloads_of_each_kind_and_no_two_are_alike() -> None:
    assert len({payload.segments for payload in REQUESTS}) >= 600
    assert len({payload.segments for payload in RESPONSES}) >= 400
    assert len(payloads.REQUESTS) >= 100
    assert len(payloads.RESPONSES) >= 100


def test_only_requests_that_h11_and_llhttp_both_accept_are_forwarded(all_sent: list[Sent]) -> None:
    def wrong(sent: Sent) -> bool:
        left = iter(sent.agreed)
        return not all(prompt_of(received) in left for received in sent.forwarded)  # each once, in order

    none_of(all_sent, wrong)


def test_what_is_forwarded_is_the_gateways_own_form_to_the_byte(all_sent: list[Sent]) -> None:
    def form(received: Received) -> bytes:
        """Less what differs from one good request to the next: the seed, the prompt, and so the length."""
        body = re.sub(rb'"seed":\d+', b'"seed":0', received.body)
        body = re.sub(rb'"(honest|second) \d{4}"', b'"prompt"', body)
        assert b"Content-Length: %d" % len(received.body) in received.head
        return re.sub(rb"Content-Length: \d+", b"Content-Length: 0", received.head) + b"\r\n\r\n" + body

    expected = form(all_sent[0].forwarded[0])
    assert REQUESTS[0].name == "sized"
    none_of(all_sent, lambda sent: any(form(received) != expected for received in sent.forwarded))


def test_a_request_behind_another_is_never_served(all_sent: list[Sent]) -> None:
    """What comes in one piece comes before the first answer has ended."""
    at_once = [sent for sent in all_sent if len(sent.payload.segments) == 1]
    none_of(
        at_once,
        lambda sent: len(sent.answers) > 1 or [prompt_of(got) for got in sent.forwarded] not in ([], sent.agreed[:1]),
    )


def test_of_pipelined_requests_the_first_is_served_and_the_connection_closed(all_sent: list[Sent]) -> None:
    piped = [
        sent for sent in all_sent if sent.payload.name in ("pipelined", "pipelined after chunks", "half of one behind")
    ]
    assert len(piped) == 3
    none_of(
        piped, lambda sent: [prompt_of(got) for got in sent.forwarded] != [f"honest {sent.number:04}"] or not sent.ended
    )
    none_of(piped[:2], lambda sent: [answer.header("Connection") for answer in sent.answers] != ["close"])


def test_sound_requests_are_served_once(all_sent: list[Sent]) -> None:
    sound = [sent for sent in all_sent if sent.payload.name.removesuffix(", in two") in payloads.SOUND]
    assert len(sound) >= 2 * len(payloads.SOUND) - 1

    def wrong(sent: Sent) -> bool:
        return len(sent.forwarded) != 1 or [answer.status for answer in sent.answers] != [200]

    none_of(sound, wrong)


SILENT = {"nothing"}  # who says nothing is told nothing


def test_every_refusal_is_a_4xx_with_an_openai_error_and_names_no_software(all_sent: list[Sent]) -> None:
    def wrong(sent: Sent) -> bool:
        refusals = [answer for answer in sent.answers if answer.status != 200]
        for answer in refusals:
            assert 400 <= answer.status < 500, sent
            assert answer.complete, sent
            assert "HEAD" in sent.payload.name or answer.error["message"], sent
            assert answer.header("Server") == "weir", sent
            assert b"aiohttp" not in answer.raw_head + answer.body, sent
        return not sent.answers and sent.payload.name not in SILENT

    none_of(all_sent, wrong)


def test_after_a_refused_framing_the_connection_is_closed_and_nothing_more_is_heard(all_sent: list[Sent]) -> None:
    def wrong(sent: Sent) -> bool:
        well_framed = min(len(h11_reads(sent.data).requests), len(httptools_reads(sent.data).requests))
        return not sent.ended or len(sent.answers) > well_framed + 1

    none_of(all_sent, wrong)
    probes = [sent.payload.name for sent in all_sent for got in sent.forwarded if prompt_of(got).startswith("probe")]
    assert probes == []


def test_how_often_each_parser_refuses_is_as_it_was(all_sent: list[Sent], record_property: Callable[..., None]) -> None:
    """A record more than a test: it fails if the payloads lose their teeth."""
    count: Counter[str] = Counter()
    for sent in all_sent:
        count["h11 forwards"] += any(map(prompt, h11_reads(sent.data).requests))
        count["llhttp forwards"] += any(map(prompt, httptools_reads(sent.data).requests))
        count["both forward"] += any(sent.agreed)
        count["the gateway forwards"] += bool(sent.forwarded)
        count["refused with 4xx"] += any(answer.status >= 400 for answer in sent.answers)
    for name, value in count.items():
        record_property(name, value)
    assert count["h11 forwards"] > count["both forward"] < count["llhttp forwards"], "the parsers differ on some"
    assert count["both forward"] >= count["the gateway forwards"] > 0
    assert count["refused with 4xx"] >= 400


# Backend to gateway.


def content(answer: Response) -> str:
    return answer.json["choices"][0]["message"]["content"]


@dataclass
class Said:
    """A hostile answer, what the client got for it, and what the next one to ask got."""

    payload: Payload
    number: int
    first: Response
    second: Response

    @property
    def data(self) -> bytes:
        return b"".join(self.payload.numbered(self.number))

    @property
    def read(self) -> tuple[bool, bool]:
        """Whether h11 and llhttp read the good answer out of it."""
        good = payloads.ANSWER.replace(b"@@@@", b"%04d" % self.number)
        return h11_answer(self.data) == good, httptools_answer(self.data) == good

    def __str__(self) -> str:
        both = (self.first, self.second)
        got = [(answer.status, content(answer) if answer.status == 200 else answer.error["code"]) for answer in both]
        return f"{self.payload.name}: h11, llhttp accept {self.read}; {got}"


@dataclass
class Hostile:
    """Answers `first N` with the payload N, and everything else with itself."""

    closes: bool
    said: list[threading.Event] = field(default_factory=lambda: [threading.Event() for _ in RESPONSES])

    async def __call__(self, exchange: Exchange) -> None:
        asked = prompt_of(exchange.request)
        kind, number = asked.split(" ")
        if kind != "first":
            await exchange.send(response(whole_body(asked)))
            return
        try:
            for pause, segment in enumerate(RESPONSES[int(number)].numbered(int(number))):
                await asyncio.sleep(SEGMENT_PAUSE_S if pause else 0)
                await exchange.send(segment)
            if self.closes:
                await exchange.close()
        finally:
            self.said[int(number)].set()


@pytest.fixture(scope="module", params=["held open", "closed"])
def all_said(request: pytest.FixtureRequest, hurried_of_module: Gateway, backend_of_module: Backend) -> list[Said]:
    """Every hostile answer, and a second request after each, on the connection that it left if any.

    Each lane is a model of its own with connections of its own. A backend that waits for the next request and answers it
    twice cannot be told from one that answers the next two: what is shown is that nothing said before is heard after.
    """
    script = Hostile(closes=request.param == "closed")
    backend_of_module.script, backend_of_module.exchanges = script, []

    def drive(lane: int) -> list[Said]:
        said = []
        for number in range(lane, len(RESPONSES), AT_ONCE):
            first = hurried_of_module.ask(f"first {number:04}", model=f"lane{lane:02}")
            assert script.said[number].wait(5)
            second = hurried_of_module.ask(f"second {number:04}", model=f"lane{lane:02}")
            said.append(Said(RESPONSES[number], number, first, second))
        return said

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sorted((said for lane in pool.map(drive, range(AT_ONCE)) for said in lane), key=lambda said: said.number)


FAILED = {502: "upstream_error", 504: "upstream_timeout"}
REJECTED = {400: "rejected_by_model_server"}


def none_said(said: list[Said], wrong: Callable[[Said], bool]) -> None:
    found = [str(item) for item in said if wrong(item)]
    assert not found, f"{len(found)} of {len(said)}:\n" + "\n".join(found[:20])


def test_a_client_gets_the_canonical_answer_or_one_of_two_errors(all_said: list[Said]) -> None:
    def form(answer: Response) -> tuple[bytes, bytes]:
        """Less the id, the times and the number."""
        identity = (answer.header("X-Request-Id") or "").encode()
        body = re.sub(rb'"created":\d+,"model":"lane\d+"', b'"created":0', answer.body.replace(identity, b"id"))
        head = re.sub(rb"Date: [^\r]*", b"Date: now", answer.raw_head.replace(identity, b"id"))
        return head, re.sub(rb"answer \d{4}", b"answer", body)

    good = form(all_said[0].first)
    assert (RESPONSES[0].name, content(all_said[0].first)) == ("sized", "answer 0000")
    errors: dict[int, set[tuple[bytes, bytes]]] = {}

    def wrong(said: Said) -> bool:
        if said.first.status == 200:
            return form(said.first) != good or content(said.first) != f"answer {said.number:04}"
        errors.setdefault(said.first.status, set()).add(form(said.first))
        return {**FAILED, **REJECTED}.get(said.first.status) != said.first.error["code"]

    none_said(all_said, wrong)
    assert {status: len(forms) for status, forms in errors.items()} == dict.fromkeys(errors, 1), "one form each"


def test_not_a_byte_of_the_backends_own_reaches_the_client(all_said: list[Said]) -> None:
    none_said(
        all_said,
        lambda said: any(MARKER in answer.raw_head + answer.body for answer in (said.first, said.second)),
    )


def test_what_neither_parser_accepts_is_never_an_answer(all_said: list[Said]) -> None:
    none_said(all_said, lambda said: said.first.status == 200 and not any(said.read))


def test_the_next_request_gets_its_own_answer_whatever_was_left_behind(all_said: list[Said]) -> None:
    none_said(all_said, lambda said: said.second.status != 200 or content(said.second) != f"second {said.number:04}")


def test_how_many_hostile_answers_are_accepted_is_recorded(
    all_said: list[Said], record_property: Callable[..., None]
) -> None:
    count = Counter(str(said.first.status) for said in all_said)
    count["h11 accepts"] = sum(said.read[0] for said in all_said)
    count["llhttp accepts"] = sum(said.read[1] for said in all_said)
    for name, value in count.items():
        record_property(name, value)
    assert count["200"] >= 10, count
    assert count["502"] + count["504"] >= 200
