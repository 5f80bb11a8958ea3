"""The page of a sweep: curves over the layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.commands.steer.report.chart import Chart, Series, fixed_text, number_text
from gateway.commands.steer.report.page import Figure, Page, page_html
from gateway.commands.steer.report.provenance import facts

Row = Mapping[str, Any]


def sweep_page(document: Mapping[str, Any]) -> str:
    """HTML."""
    request, result = document["requests"]["select"], document["result"]
    rows, selected = result["layers"], result["selected_layer"]
    with_effect = any(row["effect"] is not None for row in rows)
    headings = ["layer", "norm", "residual norm", "cosine of pairs", "d′, fitted", "d′, held out"]
    if with_effect:
        headings += ["effect (nats per scale)", "sd of samples", "steered backwards"]
    won = next(number for number, row in enumerate(rows) if row["layer"] == selected)
    return page_html(
        Page(
            title=f"Layers: {document['title']}",
            about=f"{request.get('method', 'mean_difference')} at token {request['tokens'][0]} of {document['model']['id']}, "
            "layer by layer. Layers are block outputs, counted from 0.",
            tiles=_tiles(rows, won),
            figures=_figures(rows),
            headings=headings,
            rows=[_cells(row, with_effect=with_effect) for row in rows],
            selected=won,
            facts=facts(document, request),
            document=document,
        )
    )


def figures_by_layer(rows: Sequence[Row], *, of: str = "") -> list[Figure]:
    """Separation, and length against the residual stream, layer by layer: what extraction knows."""
    found = []
    series = _measured(
        [("fitted texts", _points(rows, "d_prime")), ("held-out texts", _points(rows, "d_prime_held_out"))]
    )
    if series:
        about = "d′: how many standard deviations lie between the two sides, along the direction."
        found.append(_figure(f"Separation{of}", about, rows, series, "d′"))
    shares = [(row["layer"], row["norm"] / row["residual_norm"]) for row in rows if row.get("residual_norm")]
    series = _measured([("norm", shares)])
    if series:
        about = "‖v‖ / ‖h‖: about the relative dose of adding the vector once."
        found.append(_figure(f"Length{of}", about, rows, series, "‖v‖ / ‖h‖"))
    return found


def _figures(rows: Sequence[Row]) -> list[Figure]:
    found = figures_by_layer(rows)
    tried = [row for row in rows if row["effect"] is not None]
    if tried:
        means = [(row["layer"], row["effect"]["mean"]) for row in tried]
        band = [(x, y - row["effect"]["sd"], y + row["effect"]["sd"]) for (x, y), row in zip(means, tried, strict=True)]
        about = "Steerability: nats of propensity per unit of scale at this layer alone. Band: ± sd of the samples."
        found.append(
            _figure("Effect", about, rows, [Series(name="steerability", points=means)], "nats per scale", band=band)
        )
        shares = [(row["layer"], row["effect"]["share_negative"]) for row in tried]
        about = "Share of samples that are steered the wrong way."
        found.append(
            _figure("Steered backwards", about, rows, [Series(name="share", points=shares)], "share of samples")
        )
    return found


def _figure(
    title: str,
    about: str,
    rows: Sequence[Row],
    series: Sequence[Series],
    unit: str,
    *,
    band: Sequence[tuple[float, float, float]] = (),
) -> Figure:
    chart = Chart(
        label=f"{title} against layer",
        x_label="layer (block output)",
        y_label=unit,
        x_ticks=[row["layer"] for row in rows],
        series=series,
        band=band,
    )
    return Figure(title=title, about=about, chart=chart)


def _points(rows: Sequence[Row], field: str) -> list[tuple[float, float]]:
    return [(row["layer"], row[field]) for row in rows if row.get(field) is not None]


def _measured(series: Sequence[tuple[str, list[tuple[float, float]]]]) -> list[Series]:
    return [Series(name=name, points=points) for name, points in series if points]


def _tiles(rows: Sequence[Row], won: int) -> list[tuple[str, str]]:
    best = rows[won]
    found = [(str(best["layer"]), "layer selected: the largest d′ on held-out texts")]
    found.append((fixed_text(best["d_prime_held_out"], 2), "d′ on held-out texts there"))
    tried = [row for row in rows if row["effect"] is not None]
    if tried:
        strongest = max(tried, key=lambda row: float(row["effect"]["mean"]))
        effect = fixed_text(strongest["effect"]["mean"], 2)
        found.append((str(strongest["layer"]), f"layer where steering does most: {effect} nats per unit of scale"))
    return found


def _cells(row: Row, *, with_effect: bool) -> list[str]:
    names = ("norm", "residual_norm", "mean_pairwise_cosine", "d_prime", "d_prime_held_out")
    cells = [str(row["layer"]), *(number_text(row[name]) for name in names)]
    if with_effect:
        effect = row["effect"] or {}
        share = effect.get("share_negative")
        cells += [
            fixed_text(effect.get("mean")),
            fixed_text(effect.get("sd")),
            "–" if share is None else f"{share:.0%}",
        ]
    return cells
