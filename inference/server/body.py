"""The bytes of a request's body, in time or not at all."""

from __future__ import annotations

import asyncio

from aiohttp import web

from inference.limits import BODY_READ_TIMEOUT_S
from inference.server.errors import ApiError, bad_request


async def read_body(request: web.Request) -> bytes:
    """The whole body. Raises ApiError if it does not arrive in time; aiohttp bounds its size."""
    try:
        async with asyncio.timeout(BODY_READ_TIMEOUT_S):
            return await request.read()
    except TimeoutError as error:
        raise ApiError(408, "the body did not arrive in time", code="body_timeout") from error
    except web.RequestPayloadError as error:
        raise bad_request("the body is not what its headers say", code="invalid_body") from error
