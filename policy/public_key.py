"""Public keys as a policy spells them: `weir-<role>-<algorithm>:<name>:<base64>`, one line that says what it is for."""

import base64
import binascii
import re

from policy.rules import PublicKey

KEY_BYTES = {"x25519": 32, "xwing": 1216, "ed25519": 32}  # X-Wing: an ML-KEM-768 key (1184), then an X25519 key
AUDITORS_MAX = 8  # every key of content is sealed to each of them
SIGNERS_MAX = 16  # people who would have to be called at night
AUDITOR_PATTERN = r"^weir-auditor-(x25519|xwing):([A-Za-z0-9][A-Za-z0-9._-]{0,63}):([A-Za-z0-9+/]+=*)$"
SIGNER_PATTERN = r"^weir-signer-(ed25519):([A-Za-z0-9][A-Za-z0-9._-]{0,63}):([A-Za-z0-9+/]+=*)$"


def auditor_key(text: str) -> PublicKey:
    """What `weir keys auditor` printed. Raises `ValueError`, in words for the operator."""
    return _key(text, AUDITOR_PATTERN, made_by="weir keys auditor NAME")


def signer_key(text: str) -> PublicKey:
    """What `weir licence key` printed. Raises `ValueError`, in words for the operator."""
    return _key(text, SIGNER_PATTERN, made_by="weir licence key NAME")


def _key(text: str, pattern: str, *, made_by: str) -> PublicKey:
    match = re.fullmatch(pattern, text)  # the messages repeat nothing: it may be the private key
    if match is None:
        raise ValueError(f"is not a public key for this; write the line that `{made_by}` printed")
    algorithm, name, encoded = match.groups()
    if not _holds(encoded, KEY_BYTES[algorithm]):
        raise ValueError(f"is cut or mistyped; write the whole line that `{made_by}` printed")
    return PublicKey(algorithm=algorithm, name=name, encoded=encoded)


def _holds(encoded: str, size_bytes: int) -> bool:
    """Whether this is the one base64 spelling of so many bytes: else one key could be listed twice."""
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return False
    return len(raw) == size_bytes and base64.b64encode(raw).decode() == encoded
