"""The client to a backend reads no faster than it is read, loses nothing by that, and keeps nothing of answers that ended."""

import asyncio
import gc

import aiohttp
import pytest

from gateway.edge.upstream import READ_BUFFER_BYTES, HttpUpstream
from policy.rules import Timeouts

TIMEOUTS = Timeouts(connect_s=5.0, first_byte_s=5.0, idle_s=5.0, total_s=20.0)
PIECE = b"0123456789abcdef" * 128
PIECES = 120 * READ_BUFFER_BYTES // len(PIECE)  # far beyond what all buffers on the way hold


@pytest.mark.parametrize("pause_s", [0.0, 0.005])
async def test_a_backend_that_is_read_slowly_is_paused_and_its_body_comes_whole(pause_s):
    written = 0
    done = asyncio.Event()

    async def answer(reader, writer):
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(PIECES):
            writer.write(b"%x\r\n%s\r\n" % (len(PIECE), PIECE))
            written += len(PIECE)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await done.wait()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    upstream = HttpUpstream(address=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeouts=TIMEOUTS)
    received = 0
    async with server:
        async with upstream.request(method="GET", path="/v1/models", body=b"", stream=True) as response:
            await asyncio.sleep(0.3)  # nobody reads: the backend must come to a halt
            held = written
            while piece := await response.read():
                received += len(piece)
                await asyncio.sleep(pause_s)
        done.set()
        await upstream.close()
    assert received == PIECES * len(PIECE)
    assert held < received / 2, "it was not paused"


async def test_a_connection_that_is_used_again_keeps_nothing_of_the_answers_that_it_carried():
    connections = 0

    async def answer(reader, writer):
        nonlocal connections
        connections += 1
        while not reader.at_eof():
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n")
            await asyncio.sleep(0.01)  # so that the answer is open when its head is read
            writer.write(b"{}")

    def kept():
        gc.collect()
        return sum(type(thing) is aiohttp.StreamReader for thing in gc.get_objects())

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    upstream = HttpUpstream(address=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeouts=TIMEOUTS)
    before = kept()
    for _ in range(50):
        async with upstream.request(method="GET", path="/v1/models", body=b"", stream=True) as response:
            while await response.read():
                pass
    assert connections == 1
    assert kept() <= before + 1  # of the last answer
    await upstream.close()
    server.close()
