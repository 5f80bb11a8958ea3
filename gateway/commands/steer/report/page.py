"""The page around the plots: style, figures, tables, and a policy that lets it load nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gateway.commands.steer.report.chart import Chart, chart_svg

STYLE = """
:root { color-scheme: light dark; --surface: #fcfcfb; --raised: #ffffff; --ink: #1b1b1a; --quiet: #63625e; --grid: #e7e6e1;
  --base: #b9b8b2; --s1: #2a78d6; --s2: #d95926; --band: rgba(42, 120, 214, 0.16); }
@media (prefers-color-scheme: dark) { :root { --surface: #1a1a19; --raised: #222220; --ink: #f2f1ec; --quiet: #a9a8a2;
  --grid: #33332f; --base: #5b5a55; --s1: #4a94ea; --s2: #ec7a45; --band: rgba(74, 148, 234, 0.22); } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--surface); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 0.75rem; }
header p, .about { color: var(--quiet); margin: 0.35rem 0 0; max-width: 70ch; }
.tiles { display: flex; flex-wrap: wrap; gap: 0.75rem; margin: 1.5rem 0 0; padding: 0; list-style: none; }
.tiles li { flex: 1 1 11rem; background: var(--raised); border: 1px solid var(--grid); border-radius: 8px; padding: 0.75rem 1rem; }
.tiles b { display: block; font-size: 1.45rem; font-weight: 600; line-height: 1.3; }
.tiles span { color: var(--quiet); font-size: 0.85rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--raised); border: 1px solid var(--grid); border-radius: 8px; padding: 1rem; }
figcaption b { display: block; }
figcaption, .legend { font-size: 0.88rem; color: var(--quiet); }
figcaption b { color: var(--ink); font-size: 1rem; font-weight: 600; }
.legend { display: flex; gap: 1.25rem; margin: 0.4rem 0 0; padding: 0; list-style: none; }
.legend svg { width: 22px; height: 8px; vertical-align: middle; margin-right: 0.4rem; }
figure > svg { display: block; width: 100%; height: auto; margin-top: 0.5rem; }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
svg .tick { font-variant-numeric: tabular-nums; } svg .axis { font-weight: 500; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--grid); } .base { stroke: var(--base); }
.plain { stroke: var(--base); stroke-dasharray: 2 3; } .reference { stroke: var(--quiet); stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.point { stroke: var(--raised); stroke-width: 2; } .point.s1 { fill: var(--s1); } .point.s2 { fill: var(--s2); }
.band { fill: var(--band); } .hit { fill: transparent; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 50%; }
th, td { padding: 0.3rem 0.8rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; font-size: 0.85rem; }
tr.selected td { font-weight: 700; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1.25rem; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font: 13px/1.45 ui-monospace, "SFMono-Regular", Menlo, monospace; }
pre { overflow-x: auto; background: var(--raised); border: 1px solid var(--grid); border-radius: 8px; padding: 1rem; }
summary { cursor: pointer; color: var(--quiet); }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.5rem; } }
@media print { body { max-width: none; padding: 0; } figure, .tiles li { break-inside: avoid; } }
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its title and what one sees in it."""

    title: str
    about: str
    chart: Chart


@dataclass(frozen=True, kw_only=True)
class Page:
    """`facts`: what was measured and how. `selected`: the row of the table that won, if one did."""

    title: str
    about: str
    tiles: Sequence[tuple[str, str]]
    figures: Sequence[Figure]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    selected: int | None
    facts: Sequence[tuple[str, str]]
    document: Mapping[str, Any]


def page_html(page: Page) -> str:
    """One file. Its own policy forbids scripts, and everything from elsewhere."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    tiles = "".join(f"<li><b>{escape(value)}</b><span>{escape(about)}</span></li>" for value, about in page.tiles)
    figures = "\n".join(_figure(figure) for figure in page.figures)
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.facts)
    kept = escape(json.dumps(page.document, indent=2, ensure_ascii=False))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(page.title)}</h1><p>{escape(page.about)}</p></header>
<main>
{f'<ul class="tiles">{tiles}</ul>' if tiles else ""}
<h2>Plots</h2>
<div class="charts">
{figures}
</div>
<h2>Numbers</h2>
<div class="scroll">{_table(page)}</div>
<h2>What was measured, and how</h2>
<dl>{facts}</dl>
<h2>The measurement</h2>
<details><summary>JSON: requests and figures, as <code>weir steer … --output</code> writes them</summary>
<pre>{kept}</pre></details>
</main>
</body>
</html>
"""


def _figure(figure: Figure) -> str:
    series = figure.chart.series
    legend = "".join(
        f'<li><svg viewBox="0 0 22 8" aria-hidden="true"><line class="line s{number}" x1="1" x2="21" y1="4" y2="4"/>'
        f"</svg>{escape(one.name)}</li>"
        for number, one in enumerate(series, start=1)
    )
    legend = f'<ul class="legend">{legend}</ul>' if len(series) > 1 else ""
    return (
        f"<figure><figcaption><b>{escape(figure.title)}</b>{escape(figure.about)}</figcaption>"
        f"{legend}\n{chart_svg(figure.chart)}</figure>"
    )


def _table(page: Page) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in page.headings)
    rows = []
    for number, row in enumerate(page.rows):
        kind = ' class="selected"' if number == page.selected else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
