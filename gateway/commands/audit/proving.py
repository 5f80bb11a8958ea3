"""`weir audit prove` and `check-proof`: that a record is in the log, for somebody who has nothing of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gateway.audit.keys import Closing, closings_in
from gateway.audit.note import BadNote, Note, Verifier
from gateway.audit.proof import PROOF_BYTES_MAX, BadProof, Proof
from gateway.audit.reading import LogDirectory
from gateway.audit.tiled import TileFiles
from gateway.audit.verification import read_verifier
from gateway.commands.audit.reader import directory, leaves, read_bytes
from gateway.ports import AuditFailed
from gateway.record import Closed
from policy.limits import LEAF_BYTES_MAX

_PROVE = """\
Write a proof that a record is in the log, in the format c2sp.org/tlog-proof: the record, the hashes up to the root, and the
checkpoint. Whoever has the log's public key can check it, with `weir audit check-proof` or another program, without the log.
The record of an answer is the one of its end (`closed`): when it was, what was said in bytes, and what it cost. It holds no
content.

The checkpoint is the last one, signed by the key in force. For somebody who has a key that the log had before, say --key: then
it is the one with which that key's time ended, if the record is in it."""

_CHECK = """\
Check a proof offline: that the log's key has signed a checkpoint, and that the record is in it. The record is the one that
travels with the proof, or the one of --entry; it is printed. Exit status 1 if it is not proven."""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    raw = argparse.RawDescriptionHelpFormatter
    prove = parsers.add_parser("prove", help="prove one record", description=_PROVE, formatter_class=raw)
    directory(prove)
    prove.add_argument("record", metavar="ANSWER-ID|NUMBER", help="an answer, or the number of any record")
    prove.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="such as answer.tlog-proof")
    prove.add_argument("--key", metavar="VKEY", help="whose signature: a key of the log, or a file that has it")
    prove.set_defaults(act=_prove)
    check = parsers.add_parser("check-proof", help="check a proof offline", description=_CHECK, formatter_class=raw)
    check.add_argument("proof", type=Path, metavar="FILE", help="what `weir audit prove` wrote")
    check.add_argument("--key", required=True, metavar="VKEY", help="the log's public key, or a file that has it")
    check.add_argument(
        "--entry",
        type=Path,
        metavar="FILE",
        help="the record that is to be proven, exactly; a last newline is not counted",
    )
    check.set_defaults(act=_check)


def _prove(arguments: argparse.Namespace) -> int:
    log = LogDirectory(arguments.directory)
    if log.note is None:
        raise AuditFailed(f"{log.checkpoint_path}: nothing of this log is signed yet; ask again in a second")
    number = _number(log, arguments.record)
    note, tree = log.note, log.tree
    if arguments.key is not None:
        note, tree = _signed_by(read_verifier(arguments.key), log)
    if number >= tree.size:
        raise BadProof(f"record {number} is not signed: the checkpoint has {tree.size} records; {_later(log, tree)}")
    entry = tree.entry(number)
    proof = Proof.of(tree.subtree, number, note=note, entry=entry)
    try:
        arguments.output.write_bytes(proof.encode())
    except OSError as fault:
        raise AuditFailed(f"{arguments.output}: {fault.strerror}") from fault
    sys.stdout.write(f"{arguments.output}: record {number} of {tree.size}\n{entry.decode()}\n")
    return 0


def _signed_by(verifier: Verifier, log: LogDirectory) -> tuple[Note, TileFiles]:
    """The last checkpoint that this key has signed."""
    assert log.note is not None
    if any(map(verifier.made, log.note.signatures)):
        return log.note, log.tree
    for path in reversed(closings_in(log.directory)):
        tree = TileFiles(log.tree_directory, int(path.name))
        try:
            closing = Closing.parse(path.read_bytes(), size=tree.size, entry=tree.entry)
        except BadNote as fault:
            raise AuditFailed(f"{path}: {fault}: `weir audit verify` says more") from fault
        if closing.previous == verifier:
            return closing.note, tree
    raise AuditFailed(f"{log.directory}: {verifier} is no key that this log has or had")


def _later(log: LogDirectory, tree: TileFiles) -> str:
    return (
        "ask again in a second"
        if tree.size == log.size
        else "that key's time ended before it; ask with the one in force"
    )


def _number(log: LogDirectory, wanted: str) -> int:
    if wanted.isascii() and wanted.isdigit():
        return int(wanted)
    for record, leaf in leaves(log, what="looking for the answer"):
        if isinstance(leaf, Closed) and leaf.answer == wanted:
            return record.number
    raise AuditFailed(
        f"{log.directory}: no answer {wanted} has ended on this record; is it open, or of another gateway?"
    )


def _check(arguments: argparse.Namespace) -> int:
    verifier = read_verifier(arguments.key)
    data = read_bytes(arguments.proof, count_max=PROOF_BYTES_MAX)
    try:
        proof = Proof.parse(data)
        entry = proof.extra
        if arguments.entry is not None:
            entry = read_bytes(arguments.entry, count_max=LEAF_BYTES_MAX + 1).removesuffix(b"\n")
        if entry is None:
            raise BadProof("it does not have the record with it; give that with --entry")
        checkpoint = proof.check(verifier=verifier, entry=entry)
    except BadProof as fault:
        raise BadProof(f"{arguments.proof}: {fault}") from fault
    sys.stdout.write(
        f"{entry.decode(errors='replace')}\nis record {proof.index} of the {checkpoint.size} of {checkpoint.origin}\n"
    )
    return 0
