"""A record that cannot be made durable stops the process, and nothing of what it was about leaves."""

from __future__ import annotations

import resource

import pytest

from gateway.audit.segments import valid_size
from tests.e2e.backend import Backend, Exchange, response, say, text_event, whole_body
from tests.e2e.conftest import Start
from tests.e2e.processes import Gateway, until, weir
from tests.e2e.wire import chat, request

AUDIT_FAILED = 74


def fill_disk(gateway: Gateway) -> None:
    """From now on nothing can be written beyond the audit log's last record and one byte more."""
    (segment,) = (gateway.directory / "audit").glob("*.log")
    size = valid_size(segment)
    assert size > (gateway.directory / "gateway.log").stat().st_size, "the log of what happens must still fit"
    resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (size + 1, size + 1))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_full_disk_ends_the_process_before_a_byte_of_the_answer_leaves(
    backend: Backend, start: Start, streamed: bool
) -> None:
    gateway = start()
    for _ in range(5):
        settled = gateway.ask()
        assert settled.status == 200
    gateway.leaf("settled", settled)
    gate = backend.gate()

    async def script(exchange: Exchange) -> None:
        await gate.passed()
        if streamed:
            await exchange.begin()
            await exchange.chunk(text_event("This must never be seen. " * 4))
            await exchange.for_ever()
        await exchange.send(response(whole_body("This must never be seen.")))

    backend.script = script
    with gateway.connect() as connection:
        connection.send(request(body=chat(stream=streamed), key=gateway.key))
        until(lambda: [leaf["type"] for leaf in gateway.audit()][-1] == "opened", what="the request is on the record")
        fill_disk(gateway)
        gate.open()
        received = b""
        with pytest.raises(ConnectionError):
            received = connection.response().raw_head
    assert received == b""
    assert gateway.wait(10) == AUDIT_FAILED
    assert any("audit" in line["event"] for line in gateway.log())
    # The torn tail is what never left: recovery cuts it off, and the charge stands.
    used_bits = gateway.start().used_bits()
    assert used_bits > sum(leaf["charged_bits"] for leaf in gateway.audit() if leaf["type"] == "settled")
    backend.script = say("Recovered.")
    assert gateway.ask().status == 200


def test_other_open_answers_get_nothing_more_either(backend: Backend, start: Start) -> None:
    gateway = start()
    for _ in range(5):
        settled = gateway.ask()
    gateway.leaf("settled", settled)
    gates = [backend.gate() for _ in range(2)]
    gates_left = iter(gates)

    async def script(exchange: Exchange) -> None:
        gate = next(gates_left)
        await exchange.begin()
        await exchange.chunk(text_event("Early and on the record. " * 4))
        await gate.passed()
        await exchange.chunk(text_event("LATE" * 100))
        await exchange.for_ever()

    backend.script = script
    connections = [gateway.connect() for _ in range(2)]
    heads = []
    for connection in connections:
        connection.send(request(body=chat(stream=True), key=gateway.key))
        heads.append(connection.head())
    fill_disk(gateway)
    for gate in gates:
        gate.open()
    for connection, head in zip(connections, heads, strict=True):
        body = b"".join(connection.pieces(head))
        assert b"LATE" not in body
        assert b"[DONE]" not in body
        assert not head.complete
        connection.socket.close()
    assert gateway.wait(10) == AUDIT_FAILED


def test_a_damaged_log_refuses_to_start(start: Start) -> None:
    gateway = start()
    assert gateway.stop() == 0
    (segment,) = (gateway.directory / "audit").glob("*.log")
    segment.write_bytes(b"something else")
    ended = weir("serve", "--policy", str(gateway.path))
    assert ended.returncode == AUDIT_FAILED
    assert "not an audit segment" in ended.stderr
    assert '"event":"serving"' not in ended.stderr
