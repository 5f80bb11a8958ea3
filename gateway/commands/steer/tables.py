"""Results as tables for a terminal. Documents in, renderables out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

DOSE_SAFE, DOSE_LOST = 0.7, 1.9  # ‖h′ − h‖/‖h‖: safe as a rule below the first, coherence usually lost near the second


def extraction_table(result: dict[str, Any]) -> Table:
    """What is known of a direction at each of its layers."""
    several = len(result["layers"]) > 1
    table = _table("layer", "norm", "residual norm", "cosine of pairs", "d′", *([""] if several else []))
    for row in result["layers"]:
        selected = several and row["layer"] == result["selected_layer"]
        table.add_row(
            str(row["layer"]),
            number(row["norm"]),
            number(row["residual_norm"]),
            number(row["mean_pairwise_cosine"]),
            number(row["d_prime"]),
            *(["largest d′" if selected else ""] if several else []),
            style="bold" if selected else None,
        )
    return table


def selection_table(result: dict[str, Any]) -> Table:
    """The candidates, the winner in bold."""
    by_refusal = any(row["bypass"] is not None for row in result["candidates"])
    headings = ("layer", "position", "score", *(("bypass", "induce", "KL (nats)") if by_refusal else ()), "")
    table = _table(*headings)
    for row in result["candidates"]:
        won = (row["layer"], row["position"]) == (result["layer"], result["position"])
        refusal = [number(row[name]) for name in ("bypass", "induce", "kl_nats")] if by_refusal else []
        verdict = "selected" if won else "" if row["is_eligible"] else "not eligible"
        position = "" if row["position"] is None else str(row["position"])
        table.add_row(
            str(row["layer"]), position, number(row["score"]), *refusal, verdict, style="bold" if won else None
        )
    return table


def calibration_table(result: dict[str, Any]) -> Table:
    """The scale, and what it does."""
    table = _table("scale", "KL at the quantile", "KL, mean (nats)", "relative dose", "evaluations")
    table.add_row(
        number(result["scale"], 4),
        number(result["kl_nats"], 3),
        number(result["kl_mean_nats"], 3),
        number(result["relative_dose"], 3),
        str(result["evaluations"]),
    )
    return table


def evaluation_table(result: dict[str, Any]) -> Table:
    """A row for each scale; columns that nothing was measured for are left out."""
    columns = [
        (heading, name, places)
        for heading, name, places in (
            ("scale", "scale", 3),
            ("propensity (nats)", "propensity", 3),
            ("KL, mean", "kl_mean_nats", 3),
            ("KL, p95", "kl_p95_nats", 3),
            ("cross entropy", "cross_entropy_nats", 3),
            ("refusals", "refusal_rate", 3),
            ("relative dose", "relative_dose", 3),
        )
        if any(point[name] is not None for point in result["points"])
    ]
    table = _table(*(heading for heading, _, _ in columns))
    for point in sorted(result["points"], key=lambda point: float(point["scale"])):
        table.add_row(*(number(point[name], places) for _, name, places in columns))
    return table


def evaluation_lines(result: dict[str, Any]) -> list[str]:
    """What is said of all scales together."""
    found = []
    slope = result["steerability"]
    if slope is not None:
        found.append(
            f"steerability: {slope['mean']:+.3f} ± {slope['sd']:.3f} nats per unit of scale "
            f"(mean and spread of samples); {slope['share_negative']:.0%} of the samples are steered backwards"
        )
    if result["sign_symmetry"] is not None:
        found.append(f"sign symmetry: {result['sign_symmetry']:.2f} (1: −s does the opposite of s)")
    bayes = result["bayes"]
    if bayes is not None:
        found.append(
            f"strongest scale against the plain model: better {bayes['better']:.3f}, equivalent "
            f"{bayes['equivalent']:.3f}, worse {bayes['worse']:.3f} (Bayesian signed-rank)"
        )
    return found


def sweep_table(result: dict[str, Any]) -> Table:
    """A row for each layer."""
    with_effect = any(row["effect"] is not None for row in result["layers"])
    effect = ("effect (nats/scale)", "backwards") if with_effect else ()
    table = _table("layer", "norm / residual", "d′, fitted", "d′, held out", *effect, "")
    for row in result["layers"]:
        won = row["layer"] == result["selected_layer"]
        slope = row["effect"]
        steered = ["", ""] if slope is None else [f"{slope['mean']:+.3f}", f"{slope['share_negative']:.0%}"]
        table.add_row(
            str(row["layer"]),
            number(row["norm"] / row["residual_norm"] if row["residual_norm"] else None, 3),
            number(row["d_prime"]),
            number(row["d_prime_held_out"]),
            *(steered if with_effect else ()),
            "selected" if won else "",
            style="bold" if won else None,
        )
    return table


def vectors_table(vectors: Sequence[dict[str, Any]]) -> Table:
    """A row for each; a gateway tells kind and layers only."""
    detailed = any("method" in vector for vector in vectors)
    table = Table()
    for heading in ("vector", "kind", "layers", *(("method", "from", "d′", "description") if detailed else ())):
        table.add_column(heading, overflow="fold")
    for vector in vectors:
        details: list[str] = []
        if detailed:
            source = vector.get("dataset") or ("own texts" if "texts" in vector else "")
            best = [row for row in figures(vector) if row["layer"] == vector.get("selected_layer")]
            d_prime = number(best[0].get("d_prime")) if best else ""
            details = [str(vector.get("method", "")), source, d_prime, str(vector.get("description") or "")]
        table.add_row(vector["id"], vector["kind"], layers_text(vector["layers"]), *details)
    return table


def vector_table(vector: dict[str, Any]) -> Table:
    """Everything that is said of one, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    shown = {name: value for name, value in vector.items() if name not in ("object", "layer", "layer_figures")}
    shown["layers"] = layers_text(vector["layers"])
    for name, value in shown.items():
        table.add_row(name, _value(value))
    return table


def figures(vector: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of each layer that were kept with a vector, by layer; none if it has none, or they are not told."""
    found = vector.get("layer_figures")
    if isinstance(found, dict):
        found = [{**row, "layer": int(layer)} for layer, row in found.items()]
    return sorted(found or [], key=lambda row: int(row["layer"]))


def jobs_table(jobs: Sequence[dict[str, Any]]) -> Table:
    """A row for each."""
    table = Table("job", "kind", "status", "progress", "error")
    for job in jobs:
        table.add_row(
            job["id"], job["kind"], job["status"], f"{job['progress']:.0%}", (job.get("error") or {}).get("code")
        )
    return table


def number(value: float | None, places: int = 2) -> str:
    """Rounded; nothing for nothing."""
    return "–" if value is None else f"{value:.{places}f}"


def layers_text(layers: Sequence[int]) -> str:
    """Runs of layers: 0–29, or 6, 12, 18–20."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def dose_hint(dose: float) -> str | None:
    """What a relative dose means, if it means trouble."""
    if dose >= DOSE_LOST:
        return f"too strong: coherence is usually lost near {DOSE_LOST}"
    if dose > DOSE_SAFE:
        return f"strong: safe is up to about {DOSE_SAFE}, coherence is usually lost near {DOSE_LOST}"
    return None


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    return table


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items()) or "none"
    return "–" if value is None else str(value)
