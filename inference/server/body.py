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


async def read_file(request: web.Request, *, bytes_max: int) -> bytes:
    """A body that may be larger than JSON ones. Raises ApiError if it is too large or does not arrive in time."""
    too_large = ApiError(413, f"the file is larger than {bytes_max} bytes", code="body_too_large")
    if (request.content_length or 0) > bytes_max:
        raise too_large
    parts, total = [], 0
    try:
        async with asyncio.timeout(BODY_READ_TIMEOUT_S):
            async for part in request.content.iter_any():
                total += len(part)
                if total > bytes_max:
                    raise too_large
                parts.append(part)
    except TimeoutError as error:
        raise ApiError(408, "the body did not arrive in time", code="body_timeout") from error
    except web.RequestPayloadError as error:
        raise bad_request("the body is not what its headers say", code="invalid_body") from error
    return b"".join(parts)
