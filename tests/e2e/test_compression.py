"""Compressed answers: whole, and streamed so that each event can be read as soon as it arrives."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from backports.zstd import ZstdDecompressor

from tests.e2e.backend import DONE, Backend, Exchange, finish_event, say, text_event
from tests.e2e.processes import Gateway
from tests.e2e.wire import chat, events, request, text_of

TEXT = "The same words again and again compress well. " * 40


def decoder(coding: str) -> Any:
    return ZstdDecompressor() if coding == "zstd" else zlib.decompressobj(31)


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
def test_a_whole_answer_is_compressed(gateway: Gateway, backend: Backend, coding: str) -> None:
    backend.script = say(TEXT)
    answer = gateway.ask(headers=f"Accept-Encoding: {coding}\r\n")
    assert answer.header("Content-Encoding") == coding
    assert answer.header("Vary") == "Accept-Encoding"
    assert len(answer.body) < len(TEXT) / 4
    answer.body = decoder(coding).decompress(answer.body)
    assert answer.json["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
def test_each_event_of_a_compressed_stream_can_be_read_before_the_next_is_sent(
    gateway: Gateway, backend: Backend, coding: str
) -> None:
    gates = [backend.gate() for _ in range(5)]
    parts = [f"Piece {number}, of 32 bytes exactly; ok"[:32] for number in range(5)]

    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        for part, gate in zip(parts, gates, strict=True):
            await exchange.chunk(text_event(part))
            await gate.passed()
        await exchange.chunk(finish_event() + DONE)
        await exchange.finish()

    backend.script = script
    decode = decoder(coding)
    readable = b""
    with gateway.connect() as connection:
        head = f"Accept-Encoding: {coding}\r\n"
        connection.send(request(body=chat(stream=True), key=gateway.key, headers=head))
        answer = connection.head()
        pieces = connection.pieces(answer)
        for number, gate in enumerate(gates, start=1):
            while text_of(events(readable)) != "".join(parts[:number]):
                readable += decode.decompress(next(pieces))
            assert readable.endswith(b"\n\n"), "an event is whole as soon as it arrives"
            gate.open()
        for piece in pieces:
            readable += decode.decompress(piece)
    assert answer.header("Content-Encoding") == coding
    assert decode.eof, "the coding's own end is there"
    assert events(readable)[-1] == "[DONE]"
    assert answer.complete


def test_a_cut_stream_has_no_end_in_its_coding_either(gateway: Gateway, backend: Backend) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(text_event(TEXT))
        exchange.abort()

    backend.script = script
    answer = gateway.ask(stream=True, headers="Accept-Encoding: gzip\r\n")
    assert not answer.complete
    readable = zlib.decompressobj(31).decompress(answer.body)
    assert events(readable)[-1]["error"]["code"] == "upstream_error"


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0", "gzip"),
        ("GZIP", "gzip"),
        ("br", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_the_coding_is_one_that_the_client_accepts(
    gateway: Gateway, backend: Backend, accept: str, coding: str | None, streamed: bool
) -> None:
    backend.script = say(TEXT)
    answer = gateway.ask(stream=streamed, headers=f"Accept-Encoding: {accept}\r\n")
    assert answer.header("Content-Encoding") == coding


def test_errors_and_short_answers_are_not_compressed(gateway: Gateway, backend: Backend) -> None:
    backend.script = say("Hi")
    for answer in (
        gateway.ask(headers="Accept-Encoding: gzip\r\n"),
        gateway.ask(seed=1, headers="Accept-Encoding: gzip\r\n"),
    ):
        assert answer.header("Content-Encoding") is None
        assert answer.json


def test_the_charge_does_not_depend_on_the_coding(gateway: Gateway, backend: Backend) -> None:
    backend.script = say(TEXT)
    charges = set()
    for accept in ("identity", "gzip", "zstd"):
        closed = gateway.leaf("closed", gateway.ask(headers=f"Accept-Encoding: {accept}\r\n"))
        charges.add(closed["charged_bits"] // 32)  # idle ticks before the answer differ by a few bits
    assert max(charges) - min(charges) <= 1
