"""Import this before aiohttp: it turns on the strict mode of aiohttp's response parser.

By default the client parser accepts bare LF, control bytes and folded headers from a backend. The strict mode exists, but
is read once, at import, from asyncio's debug switch; the switch is put back so that the event loop stays fast.
"""

from __future__ import annotations

import os
import sys

_SWITCH = "PYTHONASYNCIODEBUG"


def _import_strictly() -> None:
    if "aiohttp" in sys.modules:
        return  # checked by `assert_strict`
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        import aiohttp  # noqa: F401
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before


_import_strictly()


def assert_strict() -> None:
    """Raise `RuntimeError` unless aiohttp parses strictly and in C (the pure-Python parser is laxer and slower)."""
    from aiohttp import helpers, http_parser

    if not helpers.DEBUG:
        raise RuntimeError("aiohttp was imported before gateway.edge.strict, so its response parser is lax")
    if http_parser.HttpResponseParser is http_parser.HttpResponseParserPy:
        raise RuntimeError("aiohttp runs without its C parser; install a binary wheel and unset AIOHTTP_NO_EXTENSIONS")
