"""The decoder's end of the wire: sends a request, and keeps every byte of what comes back with its time."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadtests.exfiltration.response import Response

READ_BYTES_MAX = 256 << 10
BODY_BYTES_MAX = 8 << 20  # enough to call a flood a flood


@dataclass(frozen=True, kw_only=True)
class Exit:
    """A way out: where answers can be had, and with which key."""

    port: int
    key: str

    def post(self, path: str, fields: Mapping[str, Any], *, headers: tuple[str, ...] = ()) -> bytes:
        """A POST with a JSON body."""
        body = json.dumps(fields).encode()
        lines = (*headers, "Content-Type: application/json", f"Content-Length: {len(body)}")
        return self._head("POST", path, lines) + body

    def get(self, path: str) -> bytes:
        """A GET."""
        return self.bodiless("GET", path)

    def bodiless(self, method: str, path: str) -> bytes:
        """Any method, without a body."""
        return self._head(method, path, ())

    def _head(self, method: str, path: str, lines: tuple[str, ...]) -> bytes:
        own = (f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", f"Authorization: Bearer {self.key}")
        return "\r\n".join((*own, *lines, "", "")).encode()


async def exchange(
    exit_: Exit, request: bytes, *, limit_s: float = 10.0, leave_after_bytes: int | None = None, linger_s: float = 0.0
) -> Response:
    """One request on a connection of its own, until its answer ends, breaks, takes `limit_s` or says enough.

    `linger_s`: after a complete answer wait so long for the server to close the connection, or to say more.
    """
    loop = asyncio.get_running_loop()
    response = Response()
    try:
        async with asyncio.timeout(limit_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", exit_.port)
    except (OSError, TimeoutError):
        response.end = "refused"
        return response
    try:
        writer.write(request)
        response.began_s = loop.time()
        async with asyncio.timeout(limit_s) as deadline:
            received = 0
            while data := await reader.read(READ_BYTES_MAX):
                response.feed(data, loop.time())
                received += len(data)
                if leave_after_bytes is not None and received >= leave_after_bytes:
                    response.end = "left"
                    return response
                if response.complete and response.end == "open":
                    response.end = "complete"
                    if not linger_s:
                        return response
                    deadline.reschedule(loop.time() + linger_s)
                if received > BODY_BYTES_MAX:
                    response.end = "flood"
                    return response
            response.end = "closed"
    except TimeoutError:
        response.end = "complete" if response.complete else "timeout"
    except OSError:
        response.end = "reset"
    finally:
        response.last_s = loop.time()
        writer.transport.abort()
    return response
