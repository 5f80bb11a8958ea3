"""Grafana's classic dashboard JSON, as few of its fields as our boards use: panels in rows, queries, thresholds.

No panel without a unit and a description; ids follow from the place in the board and uids from its name, so that neither
changes when a board is written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Kind = Literal["timeseries", "stat", "bargauge"]
Unit = Literal["bps", "Bps", "decbits", "bytes", "d", "s", "percentunit", "reqps", "cps", "none", "short"]

GRID_COLUMNS = 24  # Grafana's own
SCHEMA_VERSION = 39  # of the classic schema: Grafana 11; later ones migrate it when they load it
NEVER_DAYS = 1e9  # stands for +Inf, which Grafana neither draws nor maps to a word
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """PromQL and what its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """From here on in this colour."""

    value: float
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. `base` is the colour below the first threshold."""

    title: str
    description: str
    unit: Unit
    queries: Sequence[Query]
    kind: Kind = "timeseries"
    width: int = 12
    height: int = 8
    decimals: int | None = None
    minimum: float | None = 0
    maximum: float | None = None
    base: str = "green"
    thresholds: Sequence[Threshold] = ()
    words: Mapping[float, str] | None = (
        None  # shown instead of these values and all above them up to ten times as large
    )
    stacked: bool = False

    def __post_init__(self) -> None:
        if not (self.title and self.description.endswith(".") and self.queries):
            raise ValueError(f"{self.title}: a panel has a title, a query, and a description in sentences")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A heading and the panels below it, laid out from the left."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice at the head of the board, filled from labels that exist."""

    name: str
    label: str
    query: str
    several: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A dashboard. `name` is its file and, behind `weir-`, its uid: links rest on it, so it never changes."""

    name: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()
    range: str = "now-6h"

    @property
    def panels(self) -> Iterator[Panel]:
        """All of them, in order."""
        return (panel for row in self.rows for panel in row.panels)


def document(board: Board) -> Json:
    """The board as Grafana reads it."""
    return {
        "uid": f"weir-{board.name}",
        "title": board.title,
        "description": board.description,
        "tags": ["weir"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "utc",  # budgets' windows are aligned to it
        "time": {"from": board.range, "to": "now"},
        "links": [_link()],
        "templating": {"list": [_datasource(), *(_variable(variable) for variable in board.variables)]},
        "annotations": {"list": []},
        "panels": list(_placed(board.rows)),
    }


def _placed(rows: Sequence[Row]) -> Iterator[Json]:
    number, top = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": GRID_COLUMNS, "h": 1},
        }
        top += 1
        left, height = 0, 0
        for panel in row.panels:
            if left + panel.width > GRID_COLUMNS:
                left, top, height = 0, top + height, 0
            number += 1
            yield _panel(panel, number) | {"gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height}}
            left, height = left + panel.width, max(height, panel.height)
        top += height


def _panel(panel: Panel, number: int) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [_target(panel, query, chr(ord("A") + place)) for place, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
    }


def _target(panel: Panel, query: Query, ref: str) -> Json:
    is_curve = panel.kind == "timeseries"
    return {
        "refId": ref,
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
        "instant": not is_curve,
        "range": is_curve,
        "editorMode": "code",
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": panel.base, "value": None}]
    steps += [{"color": threshold.color, "value": threshold.value} for threshold in panel.thresholds]
    defaults: Json = {
        "unit": panel.unit,
        "mappings": [_words(value, text) for value, text in (panel.words or {}).items()],
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
    }
    bounds = {"decimals": panel.decimals, "min": panel.minimum, "max": panel.maximum}
    defaults |= {name: value for name, value in bounds.items() if value is not None}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.thresholds else "off"},
        }
    return defaults


def _words(value: float, text: str) -> Json:
    return {"type": "range", "options": {"from": value, "to": 10 * value, "result": {"text": text, "index": 0}}}


_LAST: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: Mapping[Kind, Json] = {
    "timeseries": {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _LAST,
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    },
    "bargauge": {
        "reduceOptions": _LAST,
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "valueMode": "color",
        "namePlacement": "left",
        "sizing": "auto",
        "minVizHeight": 16,
        "minVizWidth": 8,
        "maxVizHeight": 300,
        "legend": {"displayMode": "hidden", "placement": "bottom", "showLegend": False, "calcs": []},
    },
}


def _link() -> Json:
    return {
        "type": "dashboards",
        "title": "Weir",
        "tags": ["weir"],
        "asDropdown": True,
        "includeVars": False,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "The other boards.",
        "url": "",
    }


def _datasource() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "hide": 0,
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "options": [],
    }


def _variable(variable: Variable) -> Json:
    """Without a choice, all of them: a board shows something as soon as it is opened."""
    document: Json = {
        "type": "query",
        "name": variable.name,
        "label": variable.label,
        "datasource": DATASOURCE,
        "query": {"query": variable.query, "refId": "variable"},
        "hide": 0,
        "refresh": 2,
        "sort": 1,
        "multi": variable.several,
        "includeAll": variable.several,
        "options": [],
    }
    if variable.several:
        document |= {"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}}
    return document
