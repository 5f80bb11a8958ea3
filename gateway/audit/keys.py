"""A log's keys: the one that signs, the one that is to follow, and how the time of each earlier one ended.

A key's time, an epoch, ends with a checkpoint whose last record names the next key (`Rekeyed`), and which both keys have signed.
It is kept under `epochs/`, with the number of its records for a name. What is signed beyond it is signed by the next key. So
whoever knows a log's first key can follow it to the last, and nobody can add a key who does not have the one before.
"""

from __future__ import annotations

import os
import secrets
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gateway.audit import files
from gateway.audit.note import BadNote, Checkpoint, Note, Signer, Verifier
from gateway.audit.tiled import TREE
from gateway.ports import AuditFailed
from gateway.record import Rekeyed

KEY = "log.key"  # the signing key; it opens nothing, and is the gateway's alone
NEXT_KEY = "log.key.next"  # the one that is to follow it
VERIFIER = "log.vkey"  # what outsiders check signatures with; given to them at the beginning, not read from here
EPOCHS = "epochs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """A checkpoint that ended a key's time, and what its last record says. Not verified."""

    note: Note
    checkpoint: Checkpoint
    previous: Verifier
    key: Verifier

    @classmethod
    def parse(cls, data: bytes, *, size: int, entry: Callable[[int], bytes]) -> Closing:
        """From the file of this name, and the log's records by number. Raises `BadNote`, or what `entry` raises."""
        note = Note.parse(data)
        checkpoint = Checkpoint.parse(note.text)
        if not 0 < checkpoint.size == size or note.encode() != data:
            raise BadNote(f"is a checkpoint of {checkpoint.size} records, and not of {size}")
        announced = announcement(entry(checkpoint.size - 1))
        if announced is None:
            raise BadNote(f"the last of its records, {checkpoint.size - 1}, names no key that is to follow")
        previous, key = announced
        return cls(note=note, checkpoint=checkpoint, previous=previous, key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of a log in order, and how many records it had when each one's time ended: of the last one, it has not."""

    keys: tuple[Verifier, ...]
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.keys) == len(self.ends) + 1

    def of(self, size: int) -> Verifier:
        """Whose signature a checkpoint of so many records must have."""
        return self.keys[bisect_left(self.ends, size)]


def announcement(line: bytes) -> tuple[Verifier, Verifier] | None:
    """The key that a record says was in force and the one that is to follow, if it says that. Raises `BadNote`."""
    if b'"rekeyed"' not in line:
        return None
    try:
        leaf = msgspec.json.decode(line, type=Rekeyed)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # another record that has the word in it
    return Verifier.parse(leaf.previous), Verifier.parse(leaf.key)


def signer_of(directory: Path) -> Signer:
    """The log's key, made at its first start. The log's name is made with it, and stays when another key follows."""
    path = directory / KEY
    try:
        files.make_directory(directory)
        if not path.exists():
            if (directory / TREE).exists():
                raise AuditFailed(
                    f"{path}: missing, and the log was signed with it; restore it from a copy. {ended(directory)}"
                )
            signer = _made(f"weir.log/{secrets.token_hex(8)}")
            files.write(directory / VERIFIER, f"{signer.verifier}\n".encode())
            files.sync([directory])  # where the key is, there is what outsiders check its signatures with
            files.write(path, f"{signer.skey()}\n".encode())
            files.sync([directory])
        return Signer.parse(path.read_text().strip())
    except (OSError, BadNote, UnicodeDecodeError) as fault:
        raise AuditFailed(f"{path}: {fault}") from fault


def prepare(directory: Path, *, origin: str) -> Signer:
    """The key that is to follow, made now if there is none. It is in force only when the log says so."""
    path = directory / NEXT_KEY
    try:
        if not path.exists():
            files.write(path, f"{_made(origin).skey()}\n".encode())
            files.sync([directory])
    except OSError as fault:
        raise AuditFailed(f"{path}: {fault}") from fault
    following = prepared(directory)
    assert following is not None
    if following.name != origin:
        raise AuditFailed(f"{path}: is a key of the log {following.name}, and not of {origin}; remove it")
    return following


def prepared(directory: Path) -> Signer | None:
    """The key that is to follow, if one was made."""
    path = directory / NEXT_KEY
    try:
        return Signer.parse(path.read_text().strip())
    except FileNotFoundError:
        return None
    except (OSError, BadNote, UnicodeDecodeError) as fault:
        raise AuditFailed(f"{path}: {fault}; restore it from a copy, or remove it") from fault


def replace(directory: Path, following: Signer, *, closing: Note, size: int) -> None:
    """Put a key into force that the log has named: `closing` is signed by both. Done again, it changes nothing.

    A crash before the key is written leaves the old one, with which the next start comes here again; after it, the new one,
    and with it everything that shows whence it comes.
    """
    epochs = directory / EPOCHS
    files.make_directory(epochs)
    files.write(epochs / str(size), closing.encode())
    files.sync([epochs, directory])
    files.write(directory / VERIFIER, f"{following.verifier}\n".encode())
    files.sync([directory])
    files.write(directory / KEY, f"{following.skey()}\n".encode())
    files.sync([directory])  # before the other copy of the new key goes
    files.remove(directory / NEXT_KEY)


def tidy(directory: Path, signer: Signer) -> None:
    """A crash may have left the key in force also as the one that is to follow."""
    following = prepared(directory)
    if following is not None and following.verifier == signer.verifier:
        files.remove(directory / NEXT_KEY)


def closings_in(directory: Path) -> Sequence[Path]:
    """The files of the epochs that have ended, in order. Names that are none are left out."""
    epochs = directory / EPOCHS
    if not epochs.is_dir():
        return ()
    return sorted((path for path in epochs.iterdir() if is_closing(path.name)), key=lambda path: int(path.name))


def is_closing(name: str) -> bool:
    """Whether a file under `epochs/` is named as one of them is."""
    return name.isascii() and name.isdigit() and name == str(int(name))


def ended(directory: Path) -> str:
    """What to do with a log whose key is lost, in words."""
    return (
        "If that key is lost, this log has come to its end, because only that key could name another: keep the directory as it"
        f" is, set audit.directory in the policy to a new one, such as {directory}-2, and give its log.vkey to the auditors"
    )


def _made(name: str) -> Signer:
    return Signer(name=name, seed=os.urandom(32))
