"""Refusals in OpenAI's shape, and the one place that turns exceptions into them."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

_log = logging.getLogger("inference.server")


class ApiError(Exception):
    """An answer that is an error. `param` names the field at fault, `code` is stable and for machines."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def document(self) -> dict[str, object]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code=code, param=param)


def from_validation(error: msgspec.ValidationError) -> ApiError:
    """msgspec ends its messages with the place: "… - at `$.messages[0].role`"."""
    text = str(error)
    place = re.search(r" - at `\$\.?(.*)`$", text)
    message = text[: place.start()] if place else text
    unknown = re.search(r"unknown field `(.+)`", message)
    parts = [place.group(1) if place else "", unknown.group(1) if unknown else ""]
    code = "unknown_field" if unknown else "invalid_value"
    return bad_request(message, param=".".join(part for part in parts if part) or None, code=code)


def json_response(document: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves as JSON; a fault of ours leaves as 500 without its text, which goes to the log."""
    try:
        return await handler(request)
    except ApiError as error:
        return json_response(error.document(), status=error.status)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.status, "http_error")
        return json_response(ApiError(error.status, error.reason, code=code).document(), status=error.status)
    except (ConnectionError, TimeoutError):
        raise
    except Exception:  # noqa: BLE001 - the one place where a bug becomes a 500
        _log.exception("request failed", extra={"route": str(request.rel_url.path)})
        failed = ApiError(500, "the server failed; its log has the reason", code="internal_error")
        return json_response(failed.document(), status=500)
