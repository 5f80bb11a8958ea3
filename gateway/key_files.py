"""Private keys in files: one line, `weir-<role>-<algorithm>-secret:<name>:<base64>`, for its owner's eyes, never overwritten."""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.sealing import SECRET_BYTES, AuditorSecret, auditor_secret, public_bytes

LINE_BYTES_MAX = 4096
_LINE = re.compile(
    r"weir-(auditor|signer)-(x25519|xwing|ed25519)-secret:([A-Za-z0-9][A-Za-z0-9._-]{0,63}):([A-Za-z0-9+/=]+)\n?"
)


class KeyFileError(Exception):
    """The file holds no such key, or cannot be written. The message is one line for its owner, and quotes no key."""


def make_auditor(name: str, algorithm: str, path: Path) -> str:
    """Make an auditor's key pair, keep the private one in `path`, and return the public one as a policy spells it."""
    raw = os.urandom(SECRET_BYTES[algorithm])
    _write(path, f"weir-auditor-{algorithm}-secret:{name}:{_encoded(raw)}\n")
    return f"weir-auditor-{algorithm}:{name}:{_encoded(public_bytes(algorithm, raw))}"


def make_signer(name: str, path: Path) -> str:
    """The same for one who signs licences."""
    private = Ed25519PrivateKey.generate()
    _write(path, f"weir-signer-ed25519-secret:{name}:{_encoded(private.private_bytes_raw())}\n")
    return f"weir-signer-ed25519:{name}:{_encoded(private.public_key().public_bytes_raw())}"


def read_auditor(path: Path) -> AuditorSecret:
    """An auditor's private key. Raises `KeyFileError`."""
    algorithm, raw = _read(path, "auditor")
    if len(raw) != SECRET_BYTES.get(algorithm):
        raise KeyFileError(f"{path}: the key is cut or mistyped")
    return auditor_secret(algorithm, raw)


def read_signer(path: Path) -> Ed25519PrivateKey:
    """A signer's private key. Raises `KeyFileError`."""
    algorithm, raw = _read(path, "signer")
    if algorithm != "ed25519" or len(raw) != 32:
        raise KeyFileError(f"{path}: the key is cut or mistyped")
    return Ed25519PrivateKey.from_private_bytes(raw)


def _write(path: Path, line: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(line)
            file.flush()
            os.fsync(fd)  # its public half is about to be relied on
    except FileExistsError as fault:
        raise KeyFileError(
            f"{path}: there is a file already, and a key that is lost is lost: choose another name"
        ) from fault
    except OSError as fault:
        raise KeyFileError(f"{path}: {fault.strerror}") from fault


def _read(path: Path, role: str) -> tuple[str, bytes]:
    try:
        with path.open("rb") as file:
            text = file.read(LINE_BYTES_MAX + 1).decode("ascii", errors="replace")
    except OSError as fault:
        raise KeyFileError(f"{path}: {fault.strerror}") from fault
    match = _LINE.fullmatch(text)
    if match is None or match[1] != role:
        raise KeyFileError(f"{path}: this is not the private key of a weir {role}")
    try:
        return match[2], base64.b64decode(match[4], validate=True)
    except binascii.Error as fault:
        raise KeyFileError(f"{path}: the key is cut or mistyped") from fault


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
