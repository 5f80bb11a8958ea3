"""Whose cosignatures count, and how many of them it takes: a C2SP tlog-policy file. Pure: bytes in, rules out.

A gateway asks the witnesses itself, so a witness without a URL is a mistake here, and so is a quorum of nobody.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from gateway.audit.note import COSIGNATURE, ED25519, BadNote, Note, Verifier

POLICY_BYTES_MAX = 64 * 1024  # 32 of each kind, and a page of comments
LINES_MAX = 32  # logs, witnesses and groups, of each: what the specification asks of every implementation
AHEAD_S_MAX = 60  # clocks that are kept agree better; a cosignature from further ahead is made by one that is not
_NUMBER = re.compile(r"[1-9][0-9]{0,2}")
_URL = re.compile(r"https?://[^\s/]+(/\S*)?")
_CONTROL = re.compile(rb"[^\t\n\x20-\x7e\x80-\xff]")


class BadQuorum(Exception):
    """The file cannot be used. The message has the line, if the mistake is on one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """Somebody who cosigns: where to ask, and whose cosignatures to believe."""

    name: str  # what we call it; a key's name is its owner's choice
    url: str  # the submission prefix
    verifier: Verifier

    def __post_init__(self) -> None:
        if self.verifier.kind != COSIGNATURE:
            raise BadNote(f"key {self.verifier.name}: not a cosigner's key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Has witnessed a checkpoint if at least `least` of its members have: witnesses and other groups, by name."""

    least: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quorum:
    """What a file says. `rule` names a witness or a group."""

    logs: tuple[Verifier, ...]  # none: any log
    witnesses: Mapping[str, Witness]
    groups: Mapping[str, Group]
    rule: str
    digest: str  # SHA-256 of the file, in hex

    def since_s(self, note: Note, *, now_s: float) -> int | None:
        """When the checkpoint was witnessed by a quorum of which no member looked earlier; None if by no quorum.

        Every cosignature is checked, and a false one is none. One from the future is none either: it would never get old.
        """
        times = {}
        for name, witness in self.witnesses.items():
            try:
                made = [signature.time_s() for signature in note.verified([witness.verifier])]
            except BadNote:
                continue
            times[name] = max((time_s for time_s in made if time_s <= now_s + AHEAD_S_MAX), default=None)
        return self._since_s(self.rule, times)

    def _since_s(self, name: str, times: Mapping[str, int | None]) -> int | None:
        group = self.groups.get(name)
        if group is None:
            return times.get(name)
        met = [time_s for member in group.members if (time_s := self._since_s(member, times)) is not None]
        return heapq.nlargest(group.least, met)[-1] if len(met) >= group.least else None


@dataclass(slots=True)
class _File:
    """What the lines so far have defined."""

    logs: list[Verifier] = field(default_factory=list)
    witnesses: dict[str, Witness] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)  # a member of one group is in no other: nobody counts twice
    rule: str | None = None

    def log(self, words: Sequence[str]) -> None:
        if len(words) not in {1, 2}:
            raise BadQuorum("write: log <vkey> [<url>]")
        verifier = _verifier(words[0])
        if verifier.kind != ED25519:
            raise BadQuorum(f"key {verifier.name}: not a log's key")
        if len(self.logs) == LINES_MAX:
            raise BadQuorum(f"more than {LINES_MAX} logs")
        if any(log.public_key == verifier.public_key for log in self.logs):
            raise BadQuorum("this key stands here already")
        self.logs.append(verifier)

    def witness(self, words: Sequence[str]) -> None:
        if len(words) not in {2, 3}:
            raise BadQuorum("write: witness <name> <vkey> <url>")
        name, vkey, *url = words
        verifier = _verifier(vkey)
        if len(self.witnesses) == LINES_MAX:
            raise BadQuorum(f"more than {LINES_MAX} witnesses")
        self._new(name)
        if any(witness.verifier.public_key == verifier.public_key for witness in self.witnesses.values()):
            raise BadQuorum("this key stands here already")
        if not url or not _URL.fullmatch(url[0]):
            raise BadQuorum(f"{name} cannot be asked: add its submission prefix, https://...")
        try:
            self.witnesses[name] = Witness(name=name, url=url[0], verifier=verifier)
        except BadNote as fault:
            raise BadQuorum(str(fault)) from fault

    def group(self, words: Sequence[str]) -> None:
        if len(words) < 3:
            raise BadQuorum("write: group <name> all|any|<number> <member>...")
        name, least, *members = words
        if len(self.groups) == LINES_MAX:
            raise BadQuorum(f"more than {LINES_MAX} groups")
        self._new(name)
        for member in members:
            self._known(member)
            if member in self.grouped:
                raise BadQuorum(f"{member} is a member of a group already")
            self.grouped.add(member)
        self.groups[name] = Group(least=_least(least, of=len(members)), members=tuple(members))

    def quorum(self, words: Sequence[str]) -> None:
        if len(words) != 1:
            raise BadQuorum("write: quorum <name>")
        if self.rule is not None:
            raise BadQuorum("a second quorum")
        if words[0] == "none":
            raise BadQuorum("a quorum of nobody witnesses nothing; name a witness or a group")
        self._known(words[0])
        self.rule = words[0]

    def _new(self, name: str) -> None:
        if name == "none" or name in self.witnesses or name in self.groups:
            raise BadQuorum(f"the name {name} is taken")

    def _known(self, name: str) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise BadQuorum(f"no line above defines {name}")


def parse(data: bytes) -> Quorum:
    """Read a file. Raises `BadQuorum` for the first mistake in it."""
    if len(data) > POLICY_BYTES_MAX:
        raise BadQuorum(f"over {POLICY_BYTES_MAX} bytes")
    file = _File()
    lines: Mapping[str, Callable[[Sequence[str]], None]] = {
        "log": file.log,
        "witness": file.witness,
        "group": file.group,
        "quorum": file.quorum,
    }
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            keyword, *words = _words(line) or ("",)
            if not keyword:
                continue
            if keyword not in lines:
                raise BadQuorum(f"{keyword} is not known; a line begins with {', '.join(lines)} or #")
            lines[keyword](words)
        except BadQuorum as mistake:
            raise BadQuorum(f"line {number}: {mistake}") from mistake
    if file.rule is None:
        raise BadQuorum("no line says: quorum <name>")
    return Quorum(
        logs=tuple(file.logs),
        witnesses=file.witnesses,
        groups=file.groups,
        rule=file.rule,
        digest=sha256(data).hexdigest(),
    )


def _words(line: bytes) -> Sequence[str]:
    """Split at spaces and tabs only: other white space is part of a name. Comments may be in any encoding."""
    if _CONTROL.search(line):
        raise BadQuorum("a control character")
    words = [word for word in line.replace(b"\t", b" ").split(b" ") if word]
    if not words or words[0].startswith(b"#"):
        return ()
    try:
        return [word.decode() for word in words]
    except UnicodeDecodeError as fault:
        raise BadQuorum("not UTF-8") from fault


def _verifier(vkey: str) -> Verifier:
    try:
        return Verifier.parse(vkey)
    except BadNote as fault:
        raise BadQuorum(str(fault)) from fault


def _least(word: str, *, of: int) -> int:
    named = {"any": 1, "all": of}.get(word)
    if named is not None:
        return named
    if not _NUMBER.fullmatch(word) or int(word) > of:
        raise BadQuorum(f"{word} is not all, any or a number from 1 to {of}")
    return int(word)
