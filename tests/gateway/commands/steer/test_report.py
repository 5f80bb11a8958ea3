"""A report is one page that loads nothing, whose plots and tables are the measurement."""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.commands.steer.report import render
from gateway.commands.steer.report.chart import LEFT, RIGHT, WIDTH, Chart, Series, chart_svg, number_text, ticks
from tests.gateway.commands.steer.conftest import EXTRACTED, Script, Steer, job

POINTS = [
    {
        "scale": scale,
        "prompts": 16,
        "refusal_rate": None,
        "kl_mean_nats": abs(scale) / 2,
        "kl_p95_nats": abs(scale) * 1.5,
        "cross_entropy_nats": None,
        "propensity": 2.0 * scale + 1,
        "relative_dose": abs(scale),
    }
    for scale in (2.0, -1.0, 0.0)
]
EVALUATION: dict[str, Any] = {
    "object": "steering.measurement",
    "kind": "evaluate",
    "title": "mood <b>",
    "made": "2026-11-20T15:00:00+00:00",
    "made_by": "weir 0.1.0",
    "server": {"url": "http://127.0.0.1:8080", "is_gateway": True},
    "model": {"id": "tiny", "digest": None, "layers": None, "dtype": None},
    "requests": {
        "evaluate": {
            "steering": {"vectors": [{"id": "mood", "op": "add", "layers": [14], "apply": {"generation": "all"}}]},
            "scales": [2, -1, 0],
            "dataset": "sentiment",
        }
    },
    "jobs": {"evaluate": "job-1"},
    "vectors": [{"id": "mood", "kind": "direction", "layers": [14]}],
    "datasets": [{"id": "sentiment"}],
    "result": {
        "points": POINTS,
        "sign_symmetry": 0.5,
        "steerability": {"mean": 2.0, "sd": 0.25, "share_negative": 0.125},
        "bayes": {"worse": 0.01, "equivalent": 0.04, "better": 0.95},
    },
}


class Document(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.style = ""
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
            self._in_style = False
        elif data.strip():
            self.texts.append(data.strip())


def charts(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r'<svg viewBox="0 0 480.*?</svg>', page, re.DOTALL)]


def points(svg: ET.Element) -> list[tuple[float, float]]:
    return [
        (float(each.attrib["cx"]), float(each.attrib["cy"]))
        for each in svg.iter("circle")
        if each.get("class") != "hit"
    ]


def test_a_page_loads_nothing_and_its_policy_says_so() -> None:
    page = Document(render(EVALUATION))
    assert not {"script", "link", "img", "iframe", "object", "form", "a"} & {tag for tag, _ in page.tags}
    loading = {"src", "href", "srcset", "action", "style", "background"}
    assert not [name for _, attributes in page.tags for name in attributes if name in loading or name.startswith("on")]
    assert "url(" not in page.style
    assert "@import" not in page.style
    (policy,) = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_every_class_of_a_plot_has_a_look_in_light_and_dark() -> None:
    page = render(EVALUATION)
    style = Document(page).style
    used = {name for svg in charts(page) for each in svg.iter() for name in each.get("class", "").split()}
    assert not [name for name in used if f".{name}" not in style]
    light, dark = (
        set(re.findall(r"(--[a-z0-9]+):", part)) for part in style.split("@media (prefers-color-scheme: dark)")[:2]
    )
    assert set(re.findall(r"var\((--[a-z0-9]+)\)", style)) <= light
    assert {"--surface", "--ink", "--s1", "--s2", "--band"} <= dark


def test_what_was_measured_is_plotted_and_what_was_not_is_left_out() -> None:
    page = render(EVALUATION)
    labels = [svg.attrib["aria-label"] for svg in charts(page)]
    assert labels == ["Propensity against scale", "Divergence against scale", "Relative dose against scale"]
    propensity, divergence, _ = charts(page)
    assert [len(points(svg)) for svg in (propensity, divergence)] == [3, 6]
    assert points(propensity) == sorted(points(propensity)), "by scale, whatever the order they were measured in"
    heights = [y for _, y in points(propensity)]
    assert heights == sorted(heights, reverse=True), "it grows with the scale, and SVG counts from the top"


def test_the_band_is_the_spread_of_slopes_times_the_scale() -> None:
    propensity = charts(render(EVALUATION))[0]
    (band,) = list(propensity.iter("polygon"))
    places = [tuple(map(float, pair.split(","))) for pair in band.attrib["points"].split()]
    upper, lower = places[:3], places[:2:-1]
    widths = [low[1] - high[1] for high, low in zip(upper, lower, strict=True)]
    (_, y_minus), (_, y_zero), (_, y_two) = points(propensity)
    per_nat = (y_minus - y_two) / 6  # from −1 to 5
    assert widths == pytest.approx([2 * 0.25 * per_nat, 0, 2 * 0.5 * per_nat], abs=0.3)
    assert (upper[0][1] + lower[0][1]) / 2 == pytest.approx(y_minus, abs=0.1)
    assert y_zero == pytest.approx(upper[1][1], abs=0.1)


def test_the_page_has_the_numbers_and_how_they_came_about() -> None:
    texts = Document(render(EVALUATION)).texts
    for expected in (
        "Steering: mood <b>",
        'add mood at layers 14 {"apply": {"generation": "all"}}, on tiny. Every scale is a factor on that; scale 0 is the plain model.',
        "+2.00 ± 0.25",
        "12%",
        "−1.000",
        "not told by the gateway",
        "job-1",
        "0, of the Bayesian comparison alone",
    ):
        assert expected in texts
    assert json.loads(max(texts, key=len)) == EVALUATION


def test_layers_of_a_vector_that_a_model_server_tells_are_plotted_too() -> None:
    document = copy.deepcopy(EVALUATION)
    document["vectors"] = [{"id": "mood", "layers": [6, 14], "layer_figures": EXTRACTED["layers"]}]
    titles = [svg.attrib["aria-label"] for svg in charts(render(document))]
    assert titles[-2:] == ["Separation of mood, by layer against layer", "Length of mood, by layer against layer"]


def test_a_sweep_is_run_stored_forgotten_and_reported(script: Script, steer: Steer, tmp_path: Path, capsys) -> None:
    candidates = [
        {
            "layer": layer,
            "position": None,
            "score": score,
            "bypass": None,
            "induce": None,
            "kl_nats": None,
            "is_eligible": True,
        }
        for layer, score in ((6, 1.0), (14, 2.5))
    ]
    selected = {"layer": 14, "position": None, "score": 2.5, "candidates": candidates}
    slopes = [{"mean": mean, "sd": 0.1, "share_negative": 0.25} for mean in (0.9, 0.4)]
    ids = {name: {**job("succeeded"), "id": name} for name in ("select", "extract", "e6", "e14")}
    script.says("GET /v1/capabilities", {"object": "capabilities", "model": {"id": "tiny", "digest": "d" * 64}})
    script.says(
        "GET /v1/steering/datasets", {"data": [{"id": "sentiment", "train": 32, "test": 16, "digest": "e" * 64}]}
    )
    script.says("POST /v1/steering/select", ids["select"])
    script.says("GET /v1/jobs/select/events", [ids["select"] | {"result": selected}])
    script.says("POST /v1/steering/extract", ids["extract"])
    script.says("GET /v1/jobs/extract/events", [ids["extract"] | {"result": EXTRACTED}])
    script.says("POST /v1/steering/evaluate", ids["e6"], ids["e14"])
    for name, slope in zip(("e6", "e14"), slopes, strict=True):
        script.says(f"GET /v1/jobs/{name}/events", [ids[name] | {"result": {"steerability": slope}}])
    script.says("GET /v1/steering/vectors/mood", {"id": "mood", "kind": "direction", "layers": [14]})
    files = ("-o", str(tmp_path / "sweep.json"), "--report", str(tmp_path / "sweep.html"))
    assert steer("sweep", "mood", "--dataset", "sentiment", "--layers", "6,14", "--effect", *files) == 0
    (everywhere,) = [body["id"] for body in script.bodies("POST /v1/steering/extract")]
    assert everywhere.startswith("mood.sweep-")
    assert f"DELETE /v1/steering/vectors/{everywhere}" in [route for route, _ in script.asked]
    assert [body["steering"]["vectors"][0]["layers"] for body in script.bodies("POST /v1/steering/evaluate")] == [
        [6],
        [14],
    ]
    kept = json.loads((tmp_path / "sweep.json").read_text())
    assert [(row["layer"], row["d_prime"], row["d_prime_held_out"]) for row in kept["result"]["layers"]] == [
        (6, 1.25, 1.0),
        (14, 3.5, 2.5),
    ]
    page = (tmp_path / "sweep.html").read_text()
    labels = [svg.attrib["aria-label"].split(" against")[0] for svg in charts(page)]
    assert labels == ["Separation", "Length", "Effect", "Steered backwards"]
    texts = Document(page).texts
    assert "layer where steering does most: 0.90 nats per unit of scale" in texts
    assert "e" * 64 in texts
    assert "selected" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_said_and_the_figures_are_not_lost(
    script: Script, steer: Steer, capsys
) -> None:
    script.says("POST /v1/steering/evaluate", job("queued", 0))
    script.says("GET /v1/jobs/job-1/events", [job("succeeded", result=EVALUATION["result"])])
    assert steer("evaluate", "mood", "--prompt", "Hello?", "--report", "/nowhere/mood.html") == 2
    said = capsys.readouterr()
    assert "/nowhere/mood.html" in said.err
    assert "2.000" in said.out


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_around_the_data(low: float, size: float) -> None:
    found = ticks(low, low + size)
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert 2 <= len(found) <= 12
    assert found[0] <= low + size * 1e-6
    assert found[-1] >= low + size * (1 - 1e-6)
    assert max(steps) - min(steps) <= max(steps) * 1e-3


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(-1e4, 1e4)), min_size=1, max_size=20, unique_by=lambda p: p[0])
)
def test_every_point_lies_within_its_picture(data: list[tuple[float, float]]) -> None:
    data.sort()
    chart = Chart(
        label="&", x_label="<x>", y_label="y", x_ticks=[x for x, _ in data], series=[Series(name="s", points=data)]
    )
    svg = ET.fromstring(chart_svg(chart))
    assert len(points(svg)) == len(data)
    assert all(LEFT - 1 <= x <= WIDTH - RIGHT + 1 and 0 <= y <= 270 for x, y in points(svg))


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (-1.5, "−1.5"), (0.00004, "0"), (1234.5, "1,234"), (0.125, "0.125")]
)
def test_numbers_are_written_for_people(value: float | None, text: str) -> None:
    assert number_text(value) == text
