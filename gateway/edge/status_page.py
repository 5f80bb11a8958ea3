"""The status page of the admin port: how everything stands, on one page, without a script or anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from gateway.edge.drawing import bar, curve, top
from gateway.edge.markup import Content, Html, document, style, tag
from gateway.history import RefusalsSeen
from gateway.overview import BackendView, BudgetView, Overview, TheftView
from policy.budget import Account

CSS = (Path(__file__).parent / "status.css").read_text()
_DIGEST = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
REFRESH_S = 10
REFRESHING = f"/?refresh={REFRESH_S}"  # the page that loads itself again
HEADERS: Mapping[str, str] = {
    "Content-Type": "text/html; charset=utf-8",
    # The page has one style sheet, in itself, and an empty icon, so that browsers ask for none. Nothing else is loaded or run.
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_DIGEST}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def page(view: Overview, *, refreshes: bool) -> str:
    """The whole page. `refreshes`: whether it is one that loads itself again, which is for the reader to choose."""
    return document(
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", f"Weir: {'not ready' if view.unready else 'serving'}"),
            tag("link", rel="icon", href="data:,"),
            style(CSS),
        ),
        tag(
            "body",
            _head(view, refreshes=refreshes),
            tag(
                "main",
                _budgets(view),
                _curves(view.budgets),
                _thefts(view.thefts),
                _refusals(view),
                _backends(view.backends),
                _licence(view),
                _log(view),
                _leases(view),
                class_="grid",
            ),
        ),
    )


def _head(view: Overview, *, refreshes: bool) -> Html:
    state = ("good", "ready") if view.unready is None else ("bad", f"not ready: {view.unready}")
    turn = ("/", "stop refreshing") if refreshes else (REFRESHING, f"refresh every {REFRESH_S} s")
    workers = f", {view.workers} workers" if view.workers else ""
    return tag(
        "header",
        tag("h1", "Weir"),
        tag("p", state[1], class_=f"state {state[0]}"),
        tag("p", tag("a", turn[1], href=turn[0])),
        tag(
            "p",
            f"Version {view.version}{workers}, {_count(view.answers, 'open answer')}, policy ",
            tag("code", view.policy[:16]),
            ", at ",
            _time(view.now_s),
            class_="facts",
        ),
    )


def _budgets(view: Overview) -> Html:
    if view.ledger_fault is not None:
        return _section(
            "Budgets", tag("p", f"The ledger does not answer: {view.ledger_fault}", class_="bad"), kind="wide"
        )
    rows = [
        (
            tag(
                "th",
                _name(budget.standing.account),
                *_frozen(budget),
                tag("br"),
                tag("small", budget.window),
                scope="row",
            ),
            tag("td", _percent(budget.share), bar(budget.share), class_="share"),
            _number(_size(budget.standing.used_bits)),
            _number(_size(budget.standing.account.limit_bits)),
            _number(_size(budget.standing.reserved_bits + budget.standing.leased_bits), roomy=True),
            _number(_resets(budget.standing.account, view.now_s), roomy=True),
        )
        for budget in map(_Row, view.budgets)
    ]
    heads = ("Budget", "Used", "#Bytes", "#Limit", "#~Held", "#~Ends")
    caption = "What left, or may have left before a crash. Held: granted to this gateway or reserved for open answers."
    return _section("Budgets", _table(heads, rows, caption), kind="wide")


class _Row:
    """A budget as the table needs it."""

    def __init__(self, budget: BudgetView) -> None:
        self.standing, self.share = budget.standing, budget.share
        self.window = budget.standing.account.window.name


def _frozen(budget: _Row) -> Sequence[Html]:
    return [tag("span", " FROZEN", class_="bad")] if budget.standing.frozen else []


def _curves(budgets: Sequence[BudgetView]) -> Html | str:
    drawn = [budget for budget in budgets if len(budget.curve) > 1]
    if not drawn:
        return ""
    figures = []
    for budget in drawn:
        name = f"{_name(budget.standing.account)}, {budget.standing.account.window.name}"
        shares = [share for _, share in budget.curve if share is not None]
        if not shares:
            continue
        label = f"{name}: {_percent(shares[0])} at first, {_percent(shares[-1])} now, {_percent(max(shares))} at most"
        scale = tag("small", f"{_percent(shares[-1])} now; the top is {100 * top(budget.curve):g}%")
        ends = tag("p", _clock(budget.curve[0][0]), tag("span", _clock(budget.curve[-1][0])), class_="ends soft")
        figures.append(tag("li", tag("h3", name), scale, curve(budget.curve, label=label), ends))
    return _section("Used since this gateway began, of the whole", tag("ul", figures, class_="curves"), kind="wide")


def _thefts(thefts: Sequence[TheftView]) -> Html:
    rows = []
    for theft in thefts:
        assumption = theft.assumption + (", as the policy assumes" if theft.is_own else "")
        rows.append(
            tag(
                "tr",
                tag("th", f"{theft.model} ", tag("small", assumption), scope="row"),
                _number(_size(theft.theft_bits)),
                _number(_days(theft.days)),
                class_="own" if theft.is_own else None,
            )
        )
    caption = (
        "What a thief needs who takes every bit that the budgets allow, and how long that takes. From the policy alone."
    )
    return _section("Days to theft", _table(("Model, assumption", "#Needs", "#Days"), rows, caption), kind="tall")


def _refusals(view: Overview) -> Html:
    if not view.refusals:
        return _section("Refusals", tag("p", "None since this gateway began.", class_="soft"))
    last: dict[str, RefusalsSeen] = {}
    for seen in view.last_refusals:
        last.setdefault(seen.reason, seen)
    rows = []
    for reason, count in sorted(view.refusals, key=lambda item: -(last[item[0]].at_s if item[0] in last else 0)):
        seen_at = _ago(last[reason].at_s, view.now_s) if reason in last else "before anybody looked"
        rows.append((tag("th", tag("code", reason), scope="row"), tag("td", seen_at), _number(f"{count:,}")))
    return _section("Refusals", _table(("Reason", "Last seen", "#Since the start"), rows, "The latest first."))


def _backends(backends: Sequence[BackendView]) -> Html:
    rows = [
        (
            tag("th", backend.model, tag("br"), tag("small", backend.address), scope="row"),
            _number(f"{backend.open:,}"),
            _number(f"{backend.answers:,}"),
            tag("td", ", ".join(f"{kind} {count:,}" for kind, count in backend.errors) or "none"),
        )
        for backend in backends
    ]
    return _section("Backends", _table(("Model", "#Open", "#Answers", "Errors"), rows, "Since this gateway began."))


def _licence(view: Overview) -> Html:
    licence = view.licence
    if not licence.is_asked_for:
        return _section("Operating licence", tag("p", "The policy asks for none.", class_="soft"), kind="third")
    state = tag("span", "yes") if licence.is_in_force else tag("span", "no: nothing leaves", class_="bad")
    facts: list[tuple[str, Content | Iterable[Content]]] = [("In force", state)]
    if licence.expires_s is not None:
        left_s = licence.expires_s - view.now_s
        when = ("Ends", f"in {_span(left_s)}") if left_s > 0 else ("Ended", _ago(licence.expires_s, view.now_s))
        facts.append((when[0], [when[1], ", ", _time(licence.expires_s)]))
    return _section("Operating licence", _facts(facts), kind="third")


def _log(view: Overview) -> Html:
    log = view.log
    facts: list[tuple[str, Content | Iterable[Content]]] = [
        ("Records", f"{log.records:,}"),
        ("Head", tag("code", log.root or "none yet")),
        ("Signed", _ago(log.signed_s, view.now_s) if log.signed_s else "never"),
    ]
    if log.is_to_be_witnessed:
        facts.append(("Witnessed", _ago(log.witnessed_s, view.now_s) if log.witnessed_s else "never"))
    facts.append(("Disk free", _size(8 * log.disk_free_bytes)))
    return _section("Audit log", _facts(facts), kind="third")


def _leases(view: Overview) -> Html:
    leases = view.leases
    lasts = "nothing is held" if leases.until_s is None else _span(max(leases.until_s - view.now_s, 0.0))
    waiting = ", ".join(f"{count:,} for {code}" for code, count in view.backlog)
    facts: list[tuple[str, Content | Iterable[Content]]] = [
        ("Open", f"{leases.open:,}"),
        ("Without the ledger", lasts),
        ("Ledger errors", f"{leases.errors:,}"),
        ("To be settled", waiting or "nothing"),
    ]
    return _section("Leases", _facts(facts), kind="third")


# What sections are made of.


def _section(title: str, *contents: Content, kind: str | None = None) -> Html:
    name = title.split(",", maxsplit=1)[0].lower().replace(" ", "-")
    return tag("section", tag("h2", title, id=name), *contents, class_=kind, aria_labelledby=name)


def _table(heads: Sequence[str], rows: Iterable[Html | Iterable[Html]], caption: str) -> Html:
    """`#` before a heading: a column of numbers; `~`: one that a narrow screen does without."""
    cells = [
        tag(
            "th",
            head.lstrip("#~"),
            scope="col",
            class_=" ".join(name for mark, name in (("#", "number"), ("~", "roomy")) if mark in head) or None,
        )
        for head in heads
    ]
    body = [row if isinstance(row, Html) else tag("tr", row) for row in rows]
    return tag("table", tag("caption", caption), tag("thead", tag("tr", cells)), tag("tbody", body))


def _facts(facts: Iterable[tuple[str, Content | Iterable[Content]]]) -> Html:
    return tag("dl", [item for name, value in facts for item in (tag("dt", name), tag("dd", value))])


def _number(text: str, *, roomy: bool = False) -> Html:
    return tag("td", text, class_="number roomy" if roomy else "number")


def _name(account: Account) -> str:
    of_model = account.owner == "tenant" and account.model is not None
    return f"{account.owner} {account.name}" + (f", {account.model}" if of_model else "")


def _resets(account: Account, now_s: float) -> str:
    if account.window.sliding:
        return "slides"
    return "never" if account.expires_s is None else f"in {_span(account.expires_s - now_s)}"


def _percent(share: float) -> str:
    return "under 0.1%" if 0 < share < 0.001 else f"{share:.1%}"


def _size(bits: int) -> str:
    size = bits / 8
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _days(days: float) -> str:
    return "never" if math.isinf(days) else f"{days:,.1f}" if days < 1000 else f"{days:,.0f}"


def _span(seconds: float) -> str:
    """Two units at most: 3 h 12 min."""
    minutes, whole_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (whole_s, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"


def _ago(at_s: float, now_s: float) -> str:
    return f"{_span(max(now_s - at_s, 0.0))} ago"


def _time(at_s: float) -> Html:
    at = datetime.fromtimestamp(at_s, UTC)
    return tag("time", f"{at:%Y-%m-%d %H:%M:%S} UTC", datetime=f"{at:%Y-%m-%dT%H:%M:%SZ}")


def _clock(at_s: float) -> Html:
    at = datetime.fromtimestamp(at_s, UTC)
    return tag("time", f"{at:%d %b %H:%M} UTC", datetime=f"{at:%Y-%m-%dT%H:%M:%SZ}")


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
