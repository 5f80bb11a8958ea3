"""Two backends that say the same thing in different bytes give byte-identical answers.

Bytes go through the real decoder, canonical form, session and renderer, at given ticks; no socket and no clock.
"""

import itertools
import json
import random
from dataclasses import dataclass
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.session import Budget
from gateway.wire import embeddings, messages, responses
from gateway.wire.errors import error_body, refusal_of
from policy.budget import Purse
from policy.canonical import Malformed
from policy.release import Outcome

EXAMPLES = 120
TOOLS = ("look_up", "add")
FAULTS = ("eof", "not json", "not utf-8", "error", "two choices", "undeclared tool")


@dataclass(frozen=True)
class Said:
    """What a backend says: text tick by tick, calls, how it ends. Not how it spells it."""

    texts: tuple[str, ...]
    thoughts: tuple[str, ...] = ()  # before the texts; a tick each
    calls: tuple[tuple[str, object], ...] = ()
    finish: str = "stop"
    usage: tuple[int, int] | None = None
    fault: str | None = None  # instead of an ending
    at_once: bool = False  # whether the end comes by the same tick as the last text
    abrupt: bool = False  # whether the first text comes by the same tick as the last thought


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
calls = st.lists(
    st.tuples(st.sampled_from(TOOLS), st.dictionaries(st.text(max_size=4), json_values, max_size=3)), max_size=3
)


words = st.lists(st.text(max_size=40) | st.text('é😀\n\\"', max_size=30), max_size=6).map(tuple)


def said(*, tools: bool, thoughts: bool = False):
    return st.builds(
        Said,
        texts=words,
        thoughts=words if thoughts else st.just(()),
        calls=calls.map(tuple) if tools else st.just(()),
        finish=st.sampled_from(("stop", "length")),
        usage=st.none() | st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
        fault=st.none() | st.sampled_from(FAULTS),
        at_once=st.booleans(),
        abrupt=st.booleans(),
    )


class Voice:
    """One way to spell: every free choice is made by a seeded generator."""

    def __init__(self, seed: int, *, chat: bool, thoughts: bool = False) -> None:
        self.random = random.Random(seed)
        self.chat = chat
        self.unheard = not thoughts  # whether reasoning is dropped from here on, and so may be anything
        self.newline = self.random.choice(["\n", "\r\n"])
        self.quiet = self.random.random() < 0.2  # plain and short

    def maybe(self) -> bool:
        return not self.quiet and self.random.random() < 0.5

    # Values.

    def noise(self) -> dict:
        extra = {
            "id": f"cmpl-{self.random.random()}",
            "object": "whatever",
            "created": self.random.randrange(10**9),
            "system_fingerprint": "fp",
            "x_extra": {"secret": [1, {"deep": None}]},
            "service_tier": None,
        }
        return {name: value for name, value in extra.items() if self.maybe()}

    def shuffled(self, value: object) -> object:
        if isinstance(value, dict):
            items = [(name, self.shuffled(member)) for name, member in value.items()]
            if not self.quiet:
                self.random.shuffle(items)
            return dict(items)
        return [self.shuffled(member) for member in value] if isinstance(value, list) else value

    def spell(self, value: object) -> str:
        style = self.random.choice([{"separators": (",", ":")}, {}, {"indent": 1}, {"indent": 3}])
        return json.dumps(self.shuffled(value), ensure_ascii=self.random.random() < 0.5, **style)

    def parts(self, text: str) -> list[str]:
        cuts = sorted(self.random.randrange(len(text) + 1) for _ in range(self.random.randrange(4)))
        edges = [0, *cuts, len(text)]
        return [text[a:b] for a, b in itertools.pairwise(edges)]

    # Streams.

    def event(self, body: object) -> bytes:
        text = body if isinstance(body, str) else self.spell(body)
        lines = [f"data:{' ' if self.random.random() < 0.7 else ''}{line}" for line in text.split("\n")]
        for extra in (": comment", "event: message", "id: 7", "retry: 10", "unknown"):
            if self.maybe():
                lines.insert(self.random.randrange(len(lines) + 1), extra)
        return (self.newline.join(lines) + self.newline * 2).encode()

    def chunk(self, delta: dict, **more: object) -> bytes:
        choice = {"index": 0, **more}
        if self.maybe():
            choice["logprobs"] = {"content": [0.5]}
        if self.chat:
            late = {self.thought_name(): str(self.random.random())} if self.unheard and self.maybe() else {}
            choice["delta"] = {**delta, **({"role": "assistant"} if self.maybe() else {}), **late}
            self.unheard = self.unheard or bool(delta.get("content"))
        else:
            choice["text"] = delta.get("content", "")
        return self.event({"choices": [choice], **self.noise()})

    def text(self, text: str) -> list[bytes]:
        events = [self.chunk({"content": part}) for part in self.parts(text)]
        if self.maybe():
            events.insert(0, (self.newline * 3 + f": ping{self.newline * 2}").encode())
        if self.maybe():
            events.append(self.chunk({"content": ""}))
        return events

    def thought_name(self) -> str:
        return self.random.choice(["reasoning_content", "reasoning"])

    def thought(self, thought: str) -> list[bytes]:
        empty = {"content": self.random.choice(["", None])} if self.maybe() else {}
        return [self.chunk({self.thought_name(): part, **empty}) for part in self.parts(thought)]

    def call(self, index: int, name: str, arguments: object) -> list[bytes]:
        events = []
        for number, part in enumerate(self.parts(self.spell(arguments))):
            function = {"arguments": part}
            if number == 0 or self.maybe():
                function["name"] = name
            call = {"index": index, "id": f"call_{self.random.random()}", "type": "function", "function": function}
            events.append(self.chunk({"tool_calls": [call]}))
        return events

    def ending(self, said: Said) -> list[bytes]:
        reason = said.finish
        if said.finish == "stop" and self.maybe():
            reason = self.random.choice(["eos", "content_filter", *(["tool_calls"] if said.calls else [])])
        usage = {"usage": self.usage(said)} if said.usage else {}
        with_finish = bool(usage) and self.maybe()
        finish = self.event({
            "choices": [{"index": 0, "finish_reason": reason, **({"delta": {}} if self.chat else {"text": ""})}],
            **(usage if with_finish else {}),
            **self.noise(),
        })  # fmt: skip
        events = [finish]
        if usage and not with_finish:
            events.insert(self.random.randrange(2), self.event({"choices": [], **usage}))
        if self.maybe():
            events.append(b": bye\n\n")
        return [*events, self.event("[DONE]")]

    def usage(self, said: Said) -> dict:
        prompt, completion = said.usage
        claim = {"prompt_tokens": prompt, "completion_tokens": completion}
        return claim | ({"total_tokens": 17, "details": {"cached": 3}} if self.maybe() else {})

    def broken(self, fault: str) -> list[bytes]:
        match fault:
            case "not json":
                return [b"data: " + self.random.choice([b"{", b"oops", b'{"choices": 7}', b"[1,", b""]) + b"\n\n"]
            case "not utf-8":
                return [b'data: {"choices": [{"text": "\xff\xfe"}]}\n\n']
            case "error":
                return [self.event({"error": {"message": str(self.random.random())}})]
            case "two choices":
                return [self.event({"choices": [{"index": 0}, {"index": 1}]})]
            case "undeclared tool":
                call = {"index": 0, "function": {"name": "steal", "arguments": ""}}
                return [self.event({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})]
        return []

    # Bytes, tick by tick: everything said by a tick is complete by it, and some of what follows may have come as well.

    def stream(self, said: Said) -> list[list[bytes]]:
        ticks = [self.thought(thought) for thought in said.thoughts]
        first = len(ticks)
        ticks += [self.text(text) for text in said.texts]
        if said.abrupt and 0 < first < len(ticks):
            ticks[first - 1] += ticks.pop(first)
        spoken = [
            event for index, (name, arguments) in enumerate(said.calls) for event in self.call(index, name, arguments)
        ]
        last = [*spoken, *(self.broken(said.fault) if said.fault else self.ending(said))]
        if said.at_once and ticks:
            last = ticks.pop() + last
        return self.packets([*ticks, last])

    def whole(self, said: Said) -> list[list[bytes]]:
        text = "".join(said.texts)
        message: dict = {"content": text or self.random.choice(["", None]), "role": "assistant"}
        if said.thoughts:
            message[self.thought_name()] = "".join(said.thoughts)
        if said.calls:
            message["tool_calls"] = [
                {"id": str(self.random.random()), "function": {"name": name, "arguments": self.spell(arguments)}}
                for name, arguments in said.calls
            ]
        choice = {"index": 0, "finish_reason": said.finish, **({"message": message} if self.chat else {"text": text})}
        body: dict = {"choices": [choice], **self.noise()}
        if said.usage:
            body["usage"] = self.usage(said)
        data = self.spell(body).encode()
        if said.fault:
            data = {"eof": data[:-1], "not utf-8": b"\xff" + data}.get(said.fault, b'{"error": "x"}')
        return self.packets([[data]])

    def packets(self, ticks: list[list[bytes]]) -> list[list[bytes]]:
        data = b"".join(event for tick in ticks for event in tick)
        packets, sent, complete = [], 0, 0
        for number, tick in enumerate(ticks):
            complete += sum(map(len, tick))
            ahead = next((tick[0] for tick in ticks[number + 1 :] if tick), b"x")
            until = complete + (self.random.randrange(len(ahead)) if self.maybe() else 0)
            until = max(min(until, len(data)), sent)
            cuts = sorted(self.random.randint(sent, until) for _ in range(self.random.randrange(5)))
            edges = [sent, *cuts, until]
            packets.append([data[a:b] for a, b in itertools.pairwise(edges) if b > a])
            sent = until
        return packets


def collect(session, number):
    """What leaves at this tick; the store has nothing beyond the purse."""
    while session.ending is None and (session.answer.finished if session.whole else session.answer.ready):
        charged = session.collect(number, at_ms=0)
        if charged is not None:
            return charged
        session.budget = Budget.SPENT
        session.hold.extend_with_rest()
    return None


def client_bytes(fakes, call, packets, *, budget_bits):
    """What the client gets, tick by tick, with what it was charged."""
    account = fakes.account()
    purse = Purse()
    purse.credit(account.id, budget_bits)
    session = fakes.session(call=call, purse=purse, hold_bits=min(budget_bits, 700))
    out: list[tuple[int, bytes, int]] = []

    def tick(number):
        charged = collect(session, number)
        if charged is not None:
            release, record = charged
            refused = refusal_of(release.ending) if release.ending else None
            body = call.renderer.release(release) if release.spoken or out or not refused else error_body(refused)
            out.append((number, body, record.charged_bits))

    try:
        for number, chunks in enumerate(packets, start=1):
            for chunk in chunks:
                if not session.answer.finished:
                    for event in call.decoder.feed(chunk):
                        session.answer.add(event)
            if number < len(packets):
                tick(number)
        if not session.answer.finished:
            for event in call.decoder.eof():
                session.answer.add(event)
    except Malformed:
        session.answer.end(Outcome.UPSTREAM_ERROR)
    number = len(packets)
    while session.ending is None:
        tick(number)
        number += 1
    return out


def make_call(fakes, dialect, stream, *, reasoning=False):
    """A call of any dialect that generates; all but completions ask their backend in the chat dialect."""
    rules = fakes.ModelRules(
        name="m", usage=True, token_ids=False, tokens_max=4096, tokens_default=512, reasoning=reasoning
    )
    match dialect:
        case "chat":
            return fakes.chat_call(stream=stream, tools=TOOLS, tokens=4096, rules=rules)
        case "completions":
            return fakes.completion_call(stream=stream, tokens=4096, rules=rules)
        case "responses":
            tools = [{"type": "function", "name": name} for name in TOOLS]
            body = {"model": "m", "input": "hi", "tools": tools, "max_output_tokens": 4096, "stream": stream}
            return fakes._call(responses, body, rules)
        case "messages":
            tools = [{"name": name, "input_schema": {"type": "object"}} for name in TOOLS]
            asked = [{"role": "user", "content": "hi"}]
            body = {"model": "m", "messages": asked, "tools": tools, "max_tokens": 4096, "stream": stream}
            return fakes._call(messages, body, rules)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("reasoning", [False, True], ids=["dropping", "reasoning"])
@pytest.mark.parametrize("dialect", ["chat", "completions", "responses", "messages"])
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data(), one=st.integers(0, 2**32), other=st.integers(0, 2**32))
def test_the_same_words_in_different_bytes_give_the_same_client_bytes(
    fakes, dialect, reasoning, stream, data, one, other
):
    chat = dialect != "completions"
    words = data.draw(said(tools=chat, thoughts=chat and reasoning))
    budget_bits = data.draw(st.just(1 << 20) | st.integers(700, 2500))
    answers = []
    for seed in (one, other):
        voice = Voice(seed, chat=chat, thoughts=reasoning)
        packets = voice.stream(words) if stream else voice.whole(words)
        call = make_call(fakes, dialect, stream, reasoning=reasoning)
        answers.append(client_bytes(fakes, call, packets, budget_bits=budget_bits))
    assert answers[0] == answers[1]
    charged = sum(bits for _, _, bits in answers[0])
    assert charged <= budget_bits


def test_the_property_sees_text_calls_usage_and_faults(fakes):
    """A test that compares nothing with nothing passes too."""
    words = Said(texts=("hello ", "wörld" * 8), calls=(("add", {"b": 1, "a": [2]}),), usage=(3, 4))
    out = client_bytes(fakes, make_call(fakes, "chat", True), Voice(1, chat=True).stream(words), budget_bits=1 << 20)
    joined = b"".join(body for _, body, _ in out)
    assert len(out) >= 2
    for fact in (b"hello", "wörld".encode(), rb"{\"a\":[2],\"b\":1}", b'"total_tokens":7', b"tool_calls", b"[DONE]"):
        assert fact in joined, fact
    broken = Said(texts=("hello ", "world" * 8), fault="not json")
    out = client_bytes(fakes, make_call(fakes, "chat", True), Voice(1, chat=True).stream(broken), budget_bits=1 << 20)
    assert b"upstream_error" in out[-1][1]


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_the_property_sees_reasoning_in_every_dialect(fakes, dialect):
    words = Said(
        texts=("hello ", "wörld" * 8), thoughts=("let me ", "think" * 8), calls=(("add", {"a": 1}),), usage=(3, 4)
    )
    for stream in (True, False):
        voice = Voice(1, chat=True, thoughts=True)
        packets = voice.stream(words) if stream else voice.whole(words)
        call = make_call(fakes, dialect, stream, reasoning=True)
        out = client_bytes(fakes, call, packets, budget_bits=1 << 20)
        joined = b"".join(body for _, body, _ in out)
        for fact in (b"let me", b"think", "wörldwörld".encode(), b"add"):
            assert fact in joined, fact


# Embeddings.

floats = st.floats(-1e6, 1e6, allow_nan=False) | st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-300, 1e300])


def spell_number(number: float, rng: random.Random) -> str:
    """One of the ways to write the same double."""
    sign, digits, exponent = Decimal(repr(number)).as_tuple()
    if number == 0:
        return rng.choice(["0", "0.0", "-0.0", "-0", "0e9", "0.000"])
    whole = ("-" if sign else "") + "".join(map(str, digits))
    zeros = rng.randrange(3)
    spelled = [repr(number), f"{whole}{'0' * zeros}e{exponent - zeros}", f"{whole}.0E{exponent:+d}"]
    return rng.choice(spelled)


def embeddings_answer(rows, rng, *, usage, fault) -> list[list[bytes]]:
    voice = Voice(rng.randrange(2**32), chat=True)
    items = []
    for index, row in enumerate(rows):
        spelled = "[" + rng.choice([",", ", ", "\n,"]).join(spell_number(value, rng) for value in row) + "]"
        items.append(f'{{"object": "covert", "index": {index}, "embedding": {spelled}, "x": [1]}}')
    rng.shuffle(items)
    claim = f', "usage": {{"total_tokens": {rng.random()}, "prompt_tokens": {usage}}}' if usage is not None else ""
    data = f'{{"id": "{rng.random()}", "data": [{",".join(items)}]{claim}, "model": "covert"}}'
    data = {
        None: data,
        "eof": data[:-1],
        "nan": data.replace("[", "[NaN,", 1),
        "one more": data.replace('"data": [', '"data": [{"embedding": [1]},'),
        "too long": data.replace('"embedding": [', '"embedding": [1,', 1),
    }[fault]
    return voice.packets([[data.encode()]])


@pytest.mark.parametrize("kind", ["int8", "binary"])
@pytest.mark.parametrize("fixed", [True, False])
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    rows=st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(floats, min_size=n, max_size=n), min_size=2, max_size=4)
    ),
    usage=st.none() | st.integers(0, 10**6),
    fault=st.sampled_from([None, None, None, "eof", "nan", "one more", "too long"]),
    budget_bits=st.just(1 << 20) | st.integers(100, 400),
    one=st.integers(0, 2**32),
    other=st.integers(0, 2**32),
    encoding=st.sampled_from(["float", "base64"]),
)
def test_the_same_vectors_in_different_bytes_give_the_same_client_bytes(
    fakes, kind, fixed, rows, usage, fault, budget_bits, one, other, encoding
):
    dimensions = len(rows[0])
    rules = fakes.ModelRules(
        name="m", usage=True, token_ids=False, tokens_max=9, tokens_default=9,
        embeddings=kind, dimensions=dimensions if fixed else None,
    )  # fmt: skip
    body = {"model": "m", "input": ["a"] * len(rows), "encoding_format": encoding}
    answers = []
    for seed in (one, other):
        packets = embeddings_answer(rows, random.Random(seed), usage=usage, fault=fault)
        call = fakes._call(embeddings, body, rules)
        answers.append(client_bytes(fakes, call, packets, budget_bits=budget_bits))
    assert answers[0] == answers[1]
    ((_, data, charged),) = answers[0]
    assert charged <= budget_bits
    if fault is None and budget_bits == 1 << 20:
        bits = 8 if kind == "int8" else 1
        assert charged > bits * dimensions * len(rows)
        assert len(json.loads(data)["data"]) == len(rows)
    elif fault is not None:
        assert b"upstream_error" in data or b"egress_budget_exhausted" in data


@settings(max_examples=60, deadline=None)
@given(one=st.integers(0, 2**32), other=st.integers(0, 2**32), at=st.integers(0, 400), tokens=st.integers(1, 8))
def test_an_answer_that_is_too_long_is_cut_alike_whoever_says_it(fakes, one, other, at, tokens):
    """`max_tokens` bounds the bytes; beyond the bound a backend may say anything, in any bytes, with usage or without."""
    words = Said(texts=("é" * 60, "x" * at), usage=(1, 2), at_once=at % 2 == 0)
    answers = []
    for seed in (one, other):
        call = fakes.chat_call(tokens=tokens)
        answers.append(client_bytes(fakes, call, Voice(seed, chat=True).stream(words), budget_bits=1 << 20))
    assert answers[0] == answers[1]


@settings(max_examples=40, deadline=None)
@given(one=st.integers(0, 2**32), other=st.integers(0, 2**32), tokens=st.integers(1, 6), stream=st.booleans())
def test_calls_that_are_too_long_are_cut_alike_whoever_says_them(fakes, one, other, tokens, stream):
    words = Said(texts=("ok",), calls=(("add", {"b": "y" * 30, "a": [1, 2, 3]}),))
    answers = []
    for seed in (one, other):
        call = fakes.chat_call(tools=TOOLS, tokens=tokens, stream=stream)
        voice = Voice(seed, chat=True)
        packets = voice.stream(words) if stream else voice.whole(words)
        answers.append(client_bytes(fakes, call, packets, budget_bits=1 << 20))
    assert answers[0] == answers[1]


async def test_the_whole_core_gives_the_same_bytes_records_and_charges_for_the_same_words(fakes):
    """The same through relay, tick, leases and settler: what the auditors read does not depend on spelling either."""
    words = Said(texts=("hello " * 10, "", "wörld 😀 " * 8), calls=(("add", {"b": 1, "a": 2}),), usage=(9, 9))

    async def story(seed):
        house = fakes.House(meters=[fakes.Meter(3)])

        async def pause():
            await house.ticks(3)

        steps = []
        for chunks in Voice(seed, chat=True).stream(words):
            steps += [b"".join(chunks), pause] if chunks else [pause]
        call = fakes.chat_call(tools=TOOLS, rules=house.serving.models["m"])
        async with house.running():
            client = await house.ask(steps, call=call)
            await house.ticks(2)
        records = [leaf for leaf in house.audit.leaves if type(leaf).__name__ != "LeaseGranted"]
        return client.writes, [(type(leaf), getattr(leaf, "charged_bits", None)) for leaf in records], house.trace

    first = await story(1)
    assert len(first[0]) > 1
    for seed in range(2, 8):
        assert await story(seed) == first
