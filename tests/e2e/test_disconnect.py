"""Clients that go away: the backend is told to stop, and what was released stays charged."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.e2e.backend import Backend, Exchange, text_event
from tests.e2e.processes import Gateway, until
from tests.e2e.wire import chat, request, text_of
from tests.e2e.wire import events as events_of

RESET = struct.pack("ii", 1, 0)


async def say_and_wait(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.chunk(text_event("The client hears this and goes. " * 4))
    await exchange.for_ever()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_goes_mid_stream_stops_the_backend_and_pays_for_what_left(
    gateway: Gateway, backend: Backend, how: str
) -> None:
    backend.script = say_and_wait
    used_bits, gone = gateway.used_bits(), gateway.metric("weir_requests_total", outcome="client_gone")
    connection = gateway.connect()
    connection.send(request(body=chat(stream=True), key=gateway.key))
    answer = connection.head()
    received = text_of(events_of(next(connection.pieces(answer))))
    assert received
    if how == "reset":
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.socket.close()
    until(backend.exchanges[0].cancelled.is_set, what="the backend's connection is closed", seconds=3)
    closed, settled = gateway.leaf("closed", answer), gateway.leaf("settled", answer)
    assert closed["outcome"] is None
    assert closed["text_bytes"] >= len(received)
    assert closed["charged_bits"] >= 8 * len(received)
    assert gateway.idle().used_bits() - used_bits == settled["charged_bits"] > 0
    assert gateway.account("tenant", "alice")["reserved_bits"] == 0
    assert gateway.metric("weir_requests_total", outcome="client_gone") == gone + 1


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_goes_before_the_first_byte_stops_the_backend_and_pays_for_the_silence(
    gateway: Gateway, backend: Backend, streamed: bool
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.for_ever()

    backend.script = script
    used_bits = gateway.used_bits()
    connection = gateway.connect()
    connection.send(request(body=chat(stream=streamed), key=gateway.key))
    until(lambda: backend.exchanges, what="the backend is asked")
    connection.socket.close()
    until(backend.exchanges[0].cancelled.is_set, what="the backend's connection is closed", seconds=3)
    paid_bits = gateway.idle().used_bits() - used_bits
    assert 0 < paid_bits < 64, "how long the backend was silent is all that was told"


def test_a_client_that_goes_while_sending_its_body_reaches_no_backend(gateway: Gateway, backend: Backend) -> None:
    data = request(body=chat("x" * 1000), key=gateway.key)
    for size in (10, len(data) - 500, len(data) - 1):
        connection = gateway.connect()
        connection.send(data[:size])
        connection.socket.close()
    assert gateway.ask().status == 200
    assert len(backend.requests) == 1


def test_the_backends_connection_is_used_again_after_an_answer_and_not_after_a_cut(
    gateway: Gateway, backend: Backend
) -> None:
    gateway.ask()
    gateway.ask(stream=True)
    backend.script = say_and_wait
    connection = gateway.connect()
    connection.send(request(body=chat(stream=True), key=gateway.key))
    connection.head()
    connection.socket.close()
    until(backend.exchanges[-1].cancelled.is_set, what="the cut reached the backend")
    assert not any(exchange.cancelled.is_set() for exchange in backend.exchanges[:-1])
