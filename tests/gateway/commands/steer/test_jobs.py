"""Jobs from the terminal: followed by their events or by asking, shown, failed, and cancelled by Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.commands.steer import following
from tests.e2e.processes import environment
from tests.gateway.commands.steer.conftest import EXTRACTED, Script, Steer, job

EXTRACT = ("extract", "mood", "--dataset", "sentiment", "--layers", "6,14")


def test_an_extraction_is_followed_by_its_events_and_shown(script: Script, steer: Steer, capsys) -> None:
    script.says("POST /v1/steering/extract", job("queued", 0), status=202)
    script.says("GET /v1/jobs/job-1/events", [job("running", 0.5), job("succeeded", result=EXTRACTED)])
    assert steer(*EXTRACT) == 0
    assert script.bodies("POST /v1/steering/extract") == [
        {"id": "mood", "method": "mean_difference", "layers": [6, 14], "dataset": "sentiment"}
    ]
    said = capsys.readouterr()
    assert [row.split() for row in said.out.replace("│", " ").splitlines() if "3.50" in row] == [
        ["14", "4.00", "130.00", "–", "3.50", "largest", "d′"]
    ]
    assert "--layer 14" in said.err
    assert "GET /v1/jobs/job-1" not in [route for route, _ in script.asked], "the events said all"


def test_one_layer_is_asked_for_as_one(script: Script, steer: Steer) -> None:
    script.says("POST /v1/steering/extract", job("succeeded", result=EXTRACTED), status=202)
    script.says("GET /v1/jobs/job-1/events", [job("succeeded", result=EXTRACTED)])
    assert steer("extract", "mood", "--dataset", "sentiment", "--layer", "18", "--token", "-1", "--param", "c=0.5") == 0
    (body,) = script.bodies("POST /v1/steering/extract")
    assert (body["layer"], body["token"], body["params"]) == (18, -1, {"c": 0.5})
    assert "layers" not in body


@pytest.mark.parametrize("events", [None, [job("running", 0.1)]], ids=["no events", "events that break off"])
def test_without_events_the_job_is_asked_for(script: Script, steer: Steer, monkeypatch, capsys, events) -> None:
    monkeypatch.setattr(following, "POLL_S", 0.01)
    script.says("POST /v1/steering/extract", job("queued", 0), status=202)
    if events is not None:
        script.says("GET /v1/jobs/job-1/events", events)
    script.says("GET /v1/jobs/job-1", job("running", 0.4), job("running", 0.8), job("succeeded", result=EXTRACTED))
    assert steer(*EXTRACT, "--json") == 0
    assert json.loads(capsys.readouterr().out)["result"] == EXTRACTED


def test_a_gateway_is_told_the_model(gateway_script: Script, steer: Steer) -> None:
    gateway_script.says("POST /v1/steering/extract", job("queued", 0), status=202)
    gateway_script.says("GET /v1/jobs/job-1/events", [job("succeeded", result=EXTRACTED)])
    assert steer(*EXTRACT, "--key", "secret") == 0
    assert gateway_script.bodies("POST /v1/steering/extract")[0]["model"] == "big"
    assert gateway_script.keys == {"Bearer secret"}


def test_a_failed_job_is_a_failure_with_its_reason_and_a_hint(script: Script, steer: Steer, capsys) -> None:
    script.says("POST /v1/steering/select", job("queued", 0), status=202)
    error = {"code": "nothing_eligible", "message": "no candidate induces refusal"}
    script.says("GET /v1/jobs/job-1/events", [job("failed", error=error)])
    assert steer("select", "refusal", "--dataset", "harmfulness", "--chat", "--by", "refusal", "--json") == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["error"] == error
    assert "no candidate induces refusal" in said.err
    assert "Selection" in said.err


def test_ctrl_c_cancels_the_job_and_says_so(script: Script) -> None:
    script.says("POST /v1/steering/extract", job("queued", 0), status=202)
    script.refuses("GET /v1/jobs/job-1/events", 503, "job_watchers_full", "too many")
    script.says("GET /v1/jobs/job-1", job("running", 0.1))
    script.says("DELETE /v1/jobs/job-1", job("cancelled", 0.1))
    command = [sys.executable, "-m", "gateway", "steer", *EXTRACT, "--url", script.url, "--json"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as steering:
        deadline_s = time.monotonic() + 30
        while not script.bodies("GET /v1/jobs/job-1") and time.monotonic() < deadline_s:
            time.sleep(0.02)
        steering.send_signal(signal.SIGINT)
        out, err = steering.communicate(timeout=30)
    assert steering.returncode == 130, err
    assert json.loads(out)["status"] == "cancelled"
    assert "Interrupted: job job-1 is cancelled." in err
    assert script.asked[-1][0] == "DELETE /v1/jobs/job-1"


def test_jobs_are_listed_shown_and_cancelled(script: Script, steer: Steer, capsys) -> None:
    script.says("GET /v1/jobs", {"object": "list", "data": [job("running", 0.25)]})
    script.says("GET /v1/jobs/job-1", job("running", 0.25))
    script.says("DELETE /v1/jobs/job-1", job("cancelled", 0.25))
    assert steer("jobs") == 0
    assert "25%" in capsys.readouterr().out
    assert steer("job", "job-1", "--cancel") == 0
    assert "cancelled" in capsys.readouterr().out


def test_texts_are_lines_and_keep_the_space_before_a_word(script: Script, steer: Steer, tmp_path: Path) -> None:
    script.says("POST /v1/steering/evaluate", job("failed", error=None), status=202)
    script.says("GET /v1/jobs/job-1/events", [job("failed", error=None)])
    (tmp_path / "glad").write_text(" happy\n\n great\n")
    (tmp_path / "sour").write_text(" sad\n")
    files = ("--positive", str(tmp_path / "glad"), "--negative", str(tmp_path / "sour"))
    assert steer("evaluate", "mood", "--prompt", "Hello?", *files, "--scale", "-1", "0", "1") == 1
    (body,) = script.bodies("POST /v1/steering/evaluate")
    assert (body["positive"], body["negative"], body["scales"]) == ([" happy", " great"], [" sad"], [-1, 0, 1])
    assert body["steering"] == {"vectors": [{"id": "mood", "op": "add"}]}


def test_a_file_without_texts_is_wrong_usage_and_nothing_is_asked(
    script: Script, steer: Steer, tmp_path, capsys
) -> None:
    (tmp_path / "empty").write_text("\n\n")
    empty = str(tmp_path / "empty")
    assert steer("extract", "mood", "--positive", empty, "--negative", empty, "--layer", "3") == 2
    assert "a text a line" in capsys.readouterr().err
    assert script.bodies("POST /v1/steering/extract") == []
