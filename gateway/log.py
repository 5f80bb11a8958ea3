"""Structured logs: one JSON object a line on standard error. Never a word of a prompt, an answer or a key."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Mapping

import msgspec

_encode = msgspec.json.Encoder(enc_hook=str).encode
TRACEBACK_CHARS_MAX = 8000  # a deep recursion prints megabytes


class JsonFormatter(logging.Formatter):
    """Fields given as `extra={"fields": {...}}` become members of the object."""

    converter = staticmethod(time.gmtime)

    def __init__(self, always: Mapping[str, object]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **self._always,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            # Frames only: the text of an exception may quote what a client or a backend sent.
            line["exception"] = type(record.exc_info[1]).__name__
            line["frames"] = "".join(traceback.format_tb(record.exc_info[2]))[-TRACEBACK_CHARS_MAX:]
        return _encode(line).decode()


def configure(**always: object) -> None:
    """Send all logging of the process to standard error as JSON. Every line has these members."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(always))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


_log = logging.getLogger("weir")


def event(message: str, **fields: object) -> None:
    """Something happened."""
    _log.info(message, extra={"fields": fields})


def fault(message: str, exception: Exception, **fields: object) -> None:
    """A bug, with the frames that led to it."""
    _log.error(message, exc_info=exception, extra={"fields": fields})


def problem(message: str, **fields: object) -> None:
    """Something went wrong that an operator may want to look at."""
    _log.warning(message, extra={"fields": fields})
