"""`weir audit show`: one answer, or a tenant's day: what was asked, what left and when, and what it cost."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from gateway.audit.keys import VERIFIER
from gateway.audit.reading import LogDirectory, Record
from gateway.audit.sealing import AuditorSecret, Content, Unsealable, commitment, unseal
from gateway.audit.verification import read_verifier
from gateway.commands.audit.reader import directory, leaves, moment, time_text
from gateway.key_files import read_auditor
from gateway.ports import AuditFailed
from gateway.record import Closed, Leaf, Opened, Released, Settled

DAY_MS = 24 * 3600 * 1000
NO_KEY = "sealed: --key opens it"
DELETED = "deleted with its segment, which `weir audit verify` judges"

_DESCRIPTION = """\
Show an answer as it is on the record. With an auditor's private key (`weir keys auditor` made it): the request as it was sent
to the backend, and every piece as it left, each held against the commitment in its record. Without: times, sizes, charges.

Texts are quoted as in JSON, with everything unprintable escaped: what a client or a model said must not steer a terminal.
--json has all of it for programs, one object an answer. Exit status 1 if a commitment is broken or content is missing that
retention has not deleted. `show` believes the records; `weir audit verify` says whether they are to be believed."""


@dataclass(slots=True)
class Shown:
    """An answer's records, and the content of each, if it could be had."""

    opened: Opened
    records: list[tuple[Record, Leaf]] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)  # by the number of the record
    missing: dict[int, str] = field(default_factory=dict)  # why


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = parsers.add_parser(
        "show",
        help="show an answer or a tenant's day, decrypted with an auditor's key",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    directory(parser)
    parser.add_argument("answer", nargs="?", metavar="ANSWER-ID", help="as the client had it in X-Request-Id")
    parser.add_argument("--tenant", metavar="NAME", help="with --day: all answers of this tenant")
    parser.add_argument("--day", type=moment, metavar="YYYY-MM-DD", help="in UTC")
    parser.add_argument("--key", type=Path, metavar="FILE", help="an auditor's private key")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(act=lambda arguments: act(arguments, parser))


def act(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Show them; returns the exit status."""
    if (arguments.answer is None) == (arguments.tenant is None) or (arguments.tenant is None) != (
        arguments.day is None
    ):
        parser.error("name an answer, or a tenant and a day")
    secret = read_auditor(arguments.key) if arguments.key is not None else None
    log = LogDirectory(arguments.directory)
    answers = _answers(log, arguments)
    if not answers:
        raise AuditFailed(
            f"{log.directory}: no such answer is on this record; is it of another gateway, or another day?"
        )
    _add_contents(log, answers, secret)
    for answer in answers.values():
        sys.stdout.write(_json(answer) if arguments.json else _text(answer))
    wrong = [
        (number, why)
        for answer in answers.values()
        for number, why in answer.missing.items()
        if why not in {NO_KEY, DELETED}
    ]
    for number, why in wrong:
        sys.stderr.write(f"record {number}: {why}\n")
    return 1 if wrong else 0


def _answers(log: LogDirectory, arguments: argparse.Namespace) -> Mapping[str, Shown]:
    answers: dict[str, Shown] = {}
    for record, leaf in leaves(log, what="reading"):
        if isinstance(leaf, Opened) and _is_wanted(leaf, arguments):
            answers[leaf.answer] = Shown(leaf)
        shown = answers.get(getattr(leaf, "answer", ""))
        if shown is not None:
            shown.records.append((record, leaf))
    return answers


def _is_wanted(leaf: Opened, arguments: argparse.Namespace) -> bool:
    if arguments.answer is not None:
        return bool(leaf.answer == arguments.answer)
    return bool(leaf.tenant == arguments.tenant and 0 <= leaf.at_ms - arguments.day < DAY_MS)


def _add_contents(log: LogDirectory, answers: Mapping[str, Shown], secret: AuditorSecret | None) -> None:
    wanted: dict[int, tuple[Shown, Record]] = {}
    first = min(log.firsts().values(), default=0)
    for shown in answers.values():
        for record, leaf in shown.records:
            if _committed(leaf) is None:
                continue
            if record.number < first:
                shown.missing[record.number] = DELETED
            elif secret is None:
                shown.missing[record.number] = NO_KEY
            else:
                shown.missing[record.number] = f"{log.directory}: no segment has what this record commits to"
                wanted[record.number] = shown, record
    if secret is None or not wanted:
        return
    origin = _origin(log)
    for share in log.shares(list(wanted)):
        committed = [record for record in share.records if b'"content"' in record.line and _committed(record.leaf())]
        contents, fault = _opened(share.ciphertext, secret, origin=origin, batch=share.sealed.batch)
        for place, record in enumerate(committed):
            if record.number not in wanted:
                continue
            shown, signed = wanted[record.number]
            why = fault or _contradiction(record, signed, contents, place, count=len(committed))
            if why is None:
                shown.contents[record.number] = contents[place].data
                del shown.missing[record.number]
            else:
                shown.missing[record.number] = f"{share.segment}: {why}"


def _origin(log: LogDirectory) -> str:
    """The log's name, which what it sealed is bound to."""
    if log.checkpoint is not None:
        return log.checkpoint.origin
    return read_verifier(str(log.directory / VERIFIER)).name


def _committed(leaf: Leaf) -> str | None:
    return leaf.content if isinstance(leaf, Opened | Released | Closed) else None


def _opened(
    ciphertext: bytes | None, secret: AuditorSecret, *, origin: str, batch: str
) -> tuple[list[Content], str | None]:
    """The contents, or why there are none."""
    if ciphertext is None:
        return [], "the ciphertext that the record commits to is not there"
    try:
        return unseal(ciphertext, secret, origin=origin, batch=batch), None
    except Unsealable as fault:
        return [], str(fault)


def _contradiction(record: Record, signed: Record, contents: list[Content], place: int, *, count: int) -> str | None:
    if record.line != signed.line:
        return f"record {record.number} is not the one that the tree has"
    if len(contents) != count:
        return f"{len(contents)} contents were sealed for {count} records that commit to one"
    if commitment(contents[place]) != _committed(record.leaf()):
        return "what was sealed is not what the record commits to"
    return None


def _json(shown: Shown) -> str:
    document: dict[str, Any] = {"answer": shown.opened.answer, "records": []}
    for record, leaf in shown.records:
        row: dict[str, Any] = {"number": record.number, **msgspec.json.decode(record.line)}
        data = shown.contents.get(record.number)
        if data is not None:
            row["plaintext"] = _value(leaf, data)
        elif record.number in shown.missing:
            row["missing"] = shown.missing[record.number]
        document["records"].append(row)
    return json.dumps(document, ensure_ascii=True) + "\n"


def _value(leaf: Leaf, data: bytes) -> object:
    """A request is bytes of its own; what the gateway made is JSON."""
    if isinstance(leaf, Opened):
        try:
            return data.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(data).decode()}
    return msgspec.json.decode(data)


def _text(shown: Shown) -> str:
    opened = shown.opened
    lines = [
        f"answer {opened.answer}: tenant {opened.tenant}, model {opened.model}, {opened.route}, seed {opened.seed}"
    ]
    text = ""
    for record, leaf in shown.records:
        data = shown.contents.get(record.number)
        value = None if data is None else _value(leaf, data)
        what = _described(leaf)
        lines.append(f"  {record.number:>8}  {time_text(leaf.at_ms)}  {what}")
        lines += [f"            {line}" for line in _said(leaf, value)]
        if value is None and _committed(leaf) is not None:
            lines.append(f"            ({shown.missing[record.number]})")
        elif isinstance(value, dict) and isinstance(leaf, Released):
            text += str(value.get("text", ""))
    if text:
        lines.append(f"  whole text: {_quoted(text)}")
    return "\n".join(lines) + "\n\n"


def _described(leaf: Leaf) -> str:
    if isinstance(leaf, Opened):
        return f"opened     request of {leaf.request_bytes:,} bytes, charged to {', '.join(leaf.accounts)}"
    if isinstance(leaf, Released):
        ending = f", ends: {leaf.outcome}" if leaf.outcome is not None else ""
        return f"released   {leaf.text_bytes:,} bytes of text, {leaf.charged_bits:,} bits, tick {leaf.tick}{ending}"
    if isinstance(leaf, Closed):
        outcome = leaf.outcome or "the client went away"
        return f"closed     {outcome}; {leaf.text_bytes:,} bytes, {leaf.charged_bits:,} bits"
    if isinstance(leaf, Settled):
        return f"settled    {leaf.code}: {leaf.refunded_bits:,} bits refunded, {leaf.charged_bits:,} remain"
    return f"renewed    charged to {', '.join(getattr(leaf, 'accounts', ()))} from here on"


def _said(leaf: Leaf, value: Any) -> Iterable[str]:
    if isinstance(leaf, Opened) and value is not None:
        yield f"request: {_quoted(value if isinstance(value, str) else json.dumps(value))}"
    if isinstance(leaf, Closed) and value is not None:
        yield f"token ids: {json.dumps(value)}"
    if not isinstance(leaf, Released) or not isinstance(value, dict):
        return
    if value.get("reasoning"):
        yield f"reasoning: {_quoted(value['reasoning'])}"
    if value.get("text"):
        yield f"text: {_quoted(value['text'])}"
    if value.get("quanta") and not leaf.text_bytes:
        yield f"progress: {value['quanta']} steps further"
    ending = value.get("ending") or {}
    for call in ending.get("tool_calls", ()):
        yield f"tool call: {_quoted(call['name'])} {_quoted(call['arguments'])}"
    for name in ("usage", "numbers", "flags", "vectors"):
        if ending.get(name) not in (None, [], ()):
            yield f"{name}: {_quoted(json.dumps(ending[name]))}"


def _quoted(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in quoted)
