"""A mistake in a policy document: where it stands, and what to write instead."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Mistake:
    line: int  # from 1
    column: int  # from 1, in characters
    path: str  # "tenants.acme.share"; empty for the document as a whole
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistakes:
    """Everything that is wrong with one document, in the order of its lines."""

    name: str  # the file's name, for messages only
    mistakes: tuple[Mistake, ...]

    def render(self) -> str:
        """One line each, in the form that editors and terminals make clickable."""
        return "\n".join(self._line(mistake) for mistake in self.mistakes)

    def _line(self, mistake: Mistake) -> str:
        subject = f"{mistake.path}: " if mistake.path else ""
        return f"{self.name}:{mistake.line}:{mistake.column}: {subject}{mistake.message}"


Path = tuple[str | int, ...]


def spelled(path: Path) -> str:
    """A path as an operator would write it: `models.demo.budgets[0].window`, names with dots in quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if part.replace("_", "").replace("-", "").isalnum() else f'"{part}"'
            text += f".{name}" if text else name
    return text


def quoted(text: str) -> str:
    """A value from the document for a message, cut so that one mistake stays one line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def unknown(name: str, known: Sequence[str], *, noun: str) -> str:
    """What to say of a name that is not among `known`: the nearest of them, or the first few."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if near:
        return f"unknown {noun} {quoted(name)}; did you mean {quoted(near[0])}?"
    return f"unknown {noun} {quoted(name)}; known here: {', '.join(known[:12])}"
