"""The page of an evaluation: curves over the scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.commands.steer.report.chart import Chart, Series, fixed_text, number_text
from gateway.commands.steer.report.layers import figures_by_layer
from gateway.commands.steer.report.page import Figure, Page, page_html
from gateway.commands.steer.report.provenance import columns, facts, use_text
from gateway.commands.steer.tables import DOSE_LOST, DOSE_SAFE, figures

_HEADINGS = {
    "scale": "scale",
    "propensity": "propensity (nats)",
    "kl_mean_nats": "KL, mean (nats)",
    "kl_p95_nats": "KL, p95 (nats)",
    "cross_entropy_nats": "cross-entropy (nats)",
    "refusal_rate": "refusal rate",
    "relative_dose": "relative dose",
    "prompts": "prompts",
}

Point = Mapping[str, Any]


def evaluation_page(document: Mapping[str, Any]) -> str:
    """HTML."""
    request, result = document["requests"]["evaluate"], document["result"]
    points = sorted(result["points"], key=lambda point: float(point["scale"]))
    names = columns(points, tuple(_HEADINGS))
    return page_html(
        Page(
            title=f"Steering: {document['title']}",
            about=f"{use_text(request['steering'])}, on {document['model']['id']}. "
            "Every scale is a factor on that; scale 0 is the plain model.",
            tiles=_tiles(result),
            figures=_figures(points, result, document["vectors"]),
            headings=[_HEADINGS[name] for name in names],
            rows=[[_cell(name, point[name]) for name in names] for point in points],
            selected=None,
            facts=[
                *facts(document, request),
                *_how(request, names),
            ],
            document=document,
        )
    )


def _cell(name: str, value: float | None) -> str:
    return number_text(value) if name in ("scale", "prompts") else fixed_text(value)


def _how(request: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """What the figures rest on, beside the texts."""
    found = []
    if {"kl_mean_nats", "cross_entropy_nats", "refusal_rate"} & set(names):
        found.append(("answers", f"greedy, {request.get('answer_tokens', 32)} tokens at most; nothing is drawn"))
    if "propensity" in names:
        found.append(("seed", f"{request.get('seed', 0)}, of the Bayesian comparison alone"))
        found.append(("equivalent", f"a change within ±{request.get('rope_nats', 0.1)} nats"))
    return found


def _tiles(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    slope, bayes = result["steerability"], result["bayes"]
    if slope is not None:
        found.append(
            (f"{_signed(slope['mean'])} ± {fixed_text(slope['sd'], 2)}", "nats per unit of scale: mean ± sd of samples")
        )
        found.append((f"{slope['share_negative']:.0%}", "of the samples are steered backwards"))
    if result["sign_symmetry"] is not None:
        found.append((fixed_text(result["sign_symmetry"], 2), "sign symmetry; 1: −s does the opposite of s"))
    if bayes is not None:
        found.append((f"{bayes['better']:.1%}", "probability that the strongest scale moves a sample forwards"))
    return found


def _figures(points: Sequence[Point], result: Mapping[str, Any], vectors: Sequence[Mapping[str, Any]]) -> list[Figure]:
    found = []
    if _has(points, "propensity"):
        found.append(_propensity(points, result["steerability"]))
    if _has(points, "kl_mean_nats"):
        series = [_series(points, "kl_mean_nats", "mean"), _series(points, "kl_p95_nats", "95th percentile")]
        about = "KL(plain ‖ steered) per token of the plain model's own answers: how far distributions move."
        found.append(_figure("Divergence", about, points, series, "KL (nats per token)"))
    if _has(points, "cross_entropy_nats"):
        about = "How badly the steered model predicts the plain model's answers."
        series = [_series(points, "cross_entropy_nats", "cross-entropy")]
        found.append(_figure("Cross-entropy", about, points, series, "nats per token", has_zero=False))
    if _has(points, "refusal_rate"):
        about = "Share of greedy answers that begin as a refusal."
        series = [_series(points, "refusal_rate", "refusal rate")]
        found.append(_figure("Refusals", about, points, series, "share of prompts"))
    about = f"‖h′ − h‖ / ‖h‖. Safe below {DOSE_SAFE}; coherence is usually lost near {DOSE_LOST}."
    series = [_series(points, "relative_dose", "relative dose")]
    references = [(DOSE_SAFE, f"{DOSE_SAFE}: safe below"), (DOSE_LOST, f"{DOSE_LOST}: coherence usually lost")]
    found.append(_figure("Relative dose", about, points, series, "‖h′ − h‖ / ‖h‖", references=references))
    for vector in vectors:
        rows = [{"d_prime": None, "residual_norm": None, **row} for row in figures(dict(vector))]
        if len(rows) > 1:
            found += figures_by_layer(rows, of=f" of {vector['id']}, by layer")
    return found


def _propensity(points: Sequence[Point], slope: Mapping[str, float] | None) -> Figure:
    series = [_series(points, "propensity", "mean propensity")]
    about = "How much likelier the positive side is than the negative, mean of the samples."
    band: list[tuple[float, float, float]] = []
    if slope is not None:
        # The samples' slopes, drawn: what a spread of ± sd makes of the change from the plain model.
        about += " Band: ± one standard deviation of the samples' slopes, times the scale."
        band = [(x, y - slope["sd"] * abs(x), y + slope["sd"] * abs(x)) for x, y in series[0].points]
    return _figure("Propensity", about, points, series, "log-odds (nats)", band=band, has_zero=False)


def _figure(
    title: str,
    about: str,
    points: Sequence[Point],
    series: Sequence[Series],
    unit: str,
    *,
    band: Sequence[tuple[float, float, float]] = (),
    references: Sequence[tuple[float, str]] = (),
    has_zero: bool = True,
) -> Figure:
    chart = Chart(
        label=f"{title} against scale",
        x_label="scale",
        y_label=unit,
        x_ticks=[point["scale"] for point in points],
        series=series,
        band=band,
        references=references,
        has_zero=has_zero,
    )
    return Figure(title=title, about=about, chart=chart)


def _series(points: Sequence[Point], field: str, name: str) -> Series:
    return Series(name=name, points=[(point["scale"], point[field]) for point in points if point[field] is not None])


def _has(points: Sequence[Point], field: str) -> bool:
    return any(point[field] is not None for point in points)


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + fixed_text(value, 2)
