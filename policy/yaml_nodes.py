"""YAML text as plain nodes that remember their line and column, without YAML's surprises.

PyYAML's constructors let a duplicate key win silently and read `no` as False and `12:30:00` as 45000. So
only its parser is used: scalars keep the text that was written, and whatever two YAML readers could
understand differently is a mistake.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import yaml

from policy.mistakes import Mistake, Path, quoted, spelled

DOCUMENT_CHARACTERS_MAX = 1 << 20  # a thousand tenants are about 200 kB; the parser manages about 1 MB in 10 s
DEPTH_MAX = 16  # the deepest field of a policy is at 5; the composer recurses once per level

_REFUSED = "!refused"  # the tag of a node that is already reported
_TAG = "tag:yaml.org,2002:"
_KINDS: dict[str, Literal["text", "number", "boolean", "nothing"]] = {
    f"{_TAG}str": "text",
    f"{_TAG}int": "number",
    f"{_TAG}float": "number",
    f"{_TAG}bool": "boolean",
    f"{_TAG}null": "nothing",
}
_PLAIN_FORMS = {"number": "a decimal number", "boolean": "true or false", "nothing": "a value"}
_UNSURPRISING = {
    "text": re.compile(r".*", re.DOTALL),
    "number": re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?"),
    "boolean": re.compile(r"true|false"),
    "nothing": re.compile(r"null|~|"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    line: int  # from 1
    column: int  # from 1


_START = Position(line=1, column=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    """One value as written. `refused`: already reported, so nobody else should complain about it."""

    text: str
    kind: Literal["text", "number", "boolean", "nothing", "refused"] = "text"


NOTHING = Scalar(text="", kind="nothing")
Node = Scalar | dict[str, "Node"] | list["Node"]


@dataclass(slots=True, kw_only=True)
class Outline:
    """A document's nodes, where each key and value stands, and what was wrong with the YAML itself."""

    root: Node = field(default_factory=lambda: Scalar(text="", kind="refused"))
    mistakes: list[Mistake] = field(default_factory=list)
    _keys: dict[Path, Position] = field(default_factory=dict)
    _values: dict[Path, Position] = field(default_factory=dict)

    def at(self, *path: str | int) -> Node:
        """The node at a path of keys; nothing where there is none."""
        node = self.root
        for part in path:
            node = node.get(part, NOTHING) if isinstance(node, dict) and isinstance(part, str) else NOTHING
        return node

    @staticmethod
    def members(node: Node) -> Iterator[tuple[str | int, Node]]:
        if isinstance(node, dict):
            yield from node.items()
        elif isinstance(node, list):
            yield from enumerate(node)

    def position(self, path: Path, *, of_key: bool = False) -> Position:
        """Where a value, or its key, stands; for a value that is missing, where its parent stands."""
        if of_key and path in self._keys:
            return self._keys[path]
        while path not in self._values and path:
            path = path[:-1]
        return self._values.get(path, _START)

    def mistake(self, path: Path, message: str, *, of_key: bool = False) -> Mistake:
        place = self.position(path, of_key=of_key)
        return Mistake(line=place.line, column=place.column, path=spelled(path), message=message)

    def read(self, node: yaml.Node, path: Path) -> Node:
        self._values[path] = _position(node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(member, (*path, index)) for index, member in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Node]:
        mapping: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = _position(key_node.start_mark)
            problem = _key_problem(key_node)
            if problem:
                self.report(place, path, problem)
            elif key_node.tag == _REFUSED:
                continue
            elif key_node.value in mapping:
                first = self._keys[(*path, key_node.value)]
                problem = f"this key is already set in line {first.line}"
                self.report(place, (*path, key_node.value), problem)
            else:
                self._keys[(*path, key_node.value)] = place
                mapping[key_node.value] = self.read(value_node, (*path, key_node.value))
        return mapping

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Scalar:
        problem = _scalar_problem(node)
        if problem:
            self.report(_position(node.start_mark), path, problem)
        if problem or node.tag == _REFUSED:
            return Scalar(text="", kind="refused")
        return Scalar(text=node.value, kind=_KINDS[node.tag])

    def report(self, place: Position, path: Path, message: str) -> None:
        self.mistakes.append(Mistake(line=place.line, column=place.column, path=spelled(path), message=message))


def outline(text: str) -> Outline:
    """Read one document. Never raises: what is not YAML is a mistake in the outline, whose root is then refused."""
    read = Outline()
    if len(text) > DOCUMENT_CHARACTERS_MAX:
        read.report(_START, (), f"the document is longer than {DOCUMENT_CHARACTERS_MAX} characters")
        return read
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        read.report(_position(error.problem_mark), (), _sentence(error))
        return read
    except yaml.reader.ReaderError as error:
        read.report(_position_of(text, error.position), (), f"the character U+{error.character:04X} is not allowed")
        return read
    except (ValueError, OverflowError):
        # PyYAML passes "\UFFFFFFFF" and "%YAML 1.<5000 digits>" to chr() and int() unchecked.
        read.report(_position(loader.get_mark()), (), "this is not a character or number that YAML knows")
        return read
    if node is None:
        read.report(_START, (), "the document is empty")
        return read
    read.mistakes += loader.mistakes
    read.root = read.read(node, ())
    return read


class _Mark(Protocol):
    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes, and reports on the way what nodes no longer show: anchors, aliases, tags, depth."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.mistakes: list[Mistake] = []
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        refused = yaml.ScalarNode(_REFUSED, "", event.start_mark, event.end_mark)
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            self._report(event, "aliases (*name) are not used in policies; write the value out")
            return refused
        if event.anchor is not None:
            self._report(event, "anchors (&name) are not used in policies")
            event.anchor = None
        if event.tag is not None:
            self._report(event, f"tags ({event.tag}) are not used in policies")
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEPTH_MAX} levels", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node if event.tag is None else refused

    def _report(self, event: yaml.Event, message: str) -> None:
        place = _position(event.start_mark)
        self.mistakes.append(Mistake(line=place.line, column=place.column, path="", message=message))


def _key_problem(node: yaml.Node) -> str:
    if node.tag == f"{_TAG}merge":
        return "merge keys (<<) are not used in policies; write the values out"
    if node.tag == _REFUSED:
        return ""
    if not isinstance(node, yaml.ScalarNode):
        return "a key must be text"
    if node.tag != f"{_TAG}str":
        return f"the key {quoted(node.value)} is not text to every YAML reader; write it in quotes"
    return "" if node.value.isprintable() else "a key holds a line break or a control character"


def _scalar_problem(node: yaml.ScalarNode) -> str:
    if node.tag == _REFUSED:
        return ""
    kind = _KINDS.get(node.tag)
    if kind is None:
        return (
            f"{quoted(node.value)} means something else to some YAML readers (a date, an operator); write it in quotes"
        )
    if not _UNSURPRISING[kind].fullmatch(node.value):
        plain = _PLAIN_FORMS[kind]
        return f"{quoted(node.value)} is a {kind} to some YAML readers only; write {plain}, or quotes if it is text"
    return "" if node.value.isprintable() else "the text holds a line break or a control character"


def _sentence(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, yaml.composer.ComposerError):
        return "a second document begins here; a policy is one document"
    context = f" {error.context}" if error.context else ""
    return f"this is not YAML: {error.problem}{context}"


def _position(mark: _Mark | None) -> Position:
    assert mark is not None  # PyYAML marks every event, node and problem
    return Position(line=mark.line + 1, column=mark.column + 1)


def _position_of(text: str, index: int) -> Position:
    line_start = text.rfind("\n", 0, index) + 1
    return Position(line=text.count("\n", 0, index) + 1, column=index - line_start + 1)
