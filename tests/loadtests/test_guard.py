"""The guard against growth: its arithmetic, the committed baseline, and one very small run."""

import json
import subprocess
from pathlib import Path

import pytest

from loadtests.bench import guard
from loadtests.bench.peer import module
from tests.loadtests.test_bench import sample

ROOT = Path(__file__).resolve().parents[2]
FEW = ("--rounds", "1", "--requests", "16", "--seconds", "0.2")


@pytest.mark.parametrize(
    ("count", "lowest", "highest"),
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (12, 3, 10), (20, 6, 15), (24, 7, 18)],  # Conover, table of the binomial, 95 %
)
def test_the_interval_of_a_median_is_between_two_of_its_values(count, lowest, highest):
    assert guard.interval([float(value) for value in range(1, count + 1)]) == (lowest, highest)


def test_five_rounds_are_too_few_to_say_anything():
    assert guard.interval([1.0, 1.0, 1.0, 1.0, 1.0]) == (0.0, float("inf"))


def test_growth_within_a_tenth_passes_and_beyond_it_does_not():
    within = guard.verdict("json", [3.2] * 6, 3.0)
    beyond = guard.verdict("json", [3.4] * 6, 3.0)
    assert (within.decided, within.grown) == (True, False)
    assert (beyond.decided, beyond.grown) == (True, True)


def test_rounds_that_lie_on_both_sides_ask_for_more_rounds():
    assert not guard.verdict("json", [3.0, 3.1, 3.2, 3.4, 3.5, 3.6], 3.0).decided


def test_ratios_are_taken_within_a_round_so_that_a_slow_machine_changes_nothing():
    samples = [sample("floor", 1, cpu_us=100), sample("floor", 2, cpu_us=900), sample("gateway", 2, cpu_us=2700)]
    samples.append(sample("gateway", 1, cpu_us=300))
    assert sorted(guard.ratios_of(samples)["json c=16"]) == [3.0, 3.0]


def test_every_entry_of_the_committed_baseline_has_a_note_and_all_loads():
    history = json.loads(guard.BASELINE.read_text())
    assert history
    for entry in history:
        assert len(entry["note"].split()) >= 3
        assert len(entry["commit"]) == 40
        assert entry["ratios"].keys() == {scenario.name for scenario in guard.SCENARIOS}
        assert all(1 < ratio < 20 for ratio in entry["ratios"].values())


def test_a_baseline_is_moved_with_a_note_and_its_code_runs_beside_this(tmp_path):
    baseline = tmp_path / "baseline.json"

    def run(*words):
        command = module("loadtests.bench.guard", *FEW, "--baseline", str(baseline), *words)
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)

    assert run("--move", "why").returncode == 2, "that is no reason"
    assert run().returncode == 1, "nothing to compare with"
    moved = run("--move", "the first of this test")
    assert moved.returncode == 0, moved.stderr
    (entry,) = json.loads(baseline.read_text())
    assert entry["note"] == "the first of this test"
    beside = run()
    assert f"Beside the code of {entry['commit'][:12]}" in beside.stdout
    assert beside.stdout.count(" x baseline ") == len(guard.SCENARIOS), "each load against the code of that commit"


def test_without_the_baselines_commit_growth_against_the_floor_is_reported(tmp_path):
    baseline = tmp_path / "baseline.json"
    ratios = dict.fromkeys((scenario.name for scenario in guard.SCENARIOS), 0.01)
    baseline.write_text(json.dumps([{"commit": "0" * 40, "note": "of another clone", "ratios": ratios}]))
    command = module("loadtests.bench.guard", *FEW, "--baseline", str(baseline))
    grown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert grown.returncode == 1, grown.stderr
    assert "is not in this clone" in grown.stdout
    assert grown.stdout.count("GROWN") == len(guard.SCENARIOS)
