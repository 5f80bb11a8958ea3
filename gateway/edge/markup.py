"""HTML whose text cannot become markup: strings are escaped when they are put in, and only `tag` makes what is not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

_VOID = frozenset({"meta", "link", "br"})  # of those that we use


@dataclass(frozen=True, slots=True)
class Html:
    """Markup. Nobody but this module makes it of strings."""

    markup: str


Content = Html | str | int


def tag(name: str, /, *contents: Content | Iterable[Content], **attributes: str | float | bool | None) -> Html:
    """An element. Names of attributes are written as Python allows them: `class_`, `aria_label`; None leaves one out."""
    head = name + "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{head}>")
    return Html(f"<{head}>{''.join(map(_content, contents))}</{name}>")


def style(css: str) -> Html:
    """A style sheet of our own, as it is: a sheet has no text from anywhere."""
    assert "<" not in css
    return Html(f"<style>{css}</style>")


def document(*contents: Content) -> str:
    """A page."""
    return "<!doctype html>\n" + tag("html", *contents, lang="en").markup


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = "viewBox" if key == "viewBox" else key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def _content(content: Content | Iterable[Content]) -> str:
    if isinstance(content, Html):
        return content.markup
    if isinstance(content, str | int):
        return escape(str(content), quote=False)
    return "".join(map(_content, content))
