"""The floor: the least an aiohttp + uvloop proxy can cost. It passes bytes on and does nothing else.

No routing, no checks, no limits, no metrics: what a gateway costs above this is what its own work costs. It is built
from the cheapest parts aiohttp has (`web.Server` without an application; a body of known length goes out in one write).
Not for use as a proxy.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import uvloop
from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def main() -> None:
    """`python -m loadtests.bench.floor --route 9201=9101 --route 9202=9102`"""
    parser = argparse.ArgumentParser(prog="loadtests.bench.floor", description=__doc__)
    parser.add_argument("--route", action="append", required=True, help="PORT=UPSTREAM_PORT, both on loopback")
    routes = (route.split("=") for route in parser.parse_args().route)
    uvloop.run(serve({int(port): int(upstream_port) for port, upstream_port in routes}))


async def serve(routes: dict[int, int]) -> None:
    """Proxy each port to its upstream port until killed."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
    async with session, asyncio.TaskGroup() as servers:
        for port, upstream_port in routes.items():
            server = web.Server(proxy_to(f"http://127.0.0.1:{upstream_port}", session), access_log=None)
            listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", port)
            servers.create_task(listener.serve_forever())


def proxy_to(origin: str, session: aiohttp.ClientSession) -> Handler:
    """A handler that sends each request to `origin` and its answer back."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        headers = {"Content-Type": request.content_type, "Accept-Encoding": "identity"}
        async with session.request(request.method, origin + request.path, data=body, headers=headers) as upstream:
            content_type = {"Content-Type": upstream.headers["Content-Type"]}
            if upstream.content_length is not None:
                return web.Response(status=upstream.status, body=await upstream.read(), headers=content_type)
            response = web.StreamResponse(status=upstream.status, headers=content_type)
            await response.prepare(request)
            async for piece in upstream.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    return handle


if __name__ == "__main__":
    main()
