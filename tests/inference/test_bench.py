from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.bench import steering

ROOT = Path(__file__).parents[2]


def answer(name: str, *, batch: int, number: int, wall_s: float, ids: list[list[int]]) -> dict[str, object]:
    return {"name": name, "batch": batch, "round": number, "wall_s": wall_s, "cpu_s": wall_s, "ids": ids}


def test_rates_are_compared_within_a_round_and_tokens_one_by_one():
    answers = [
        answer(name, batch=1, number=number, wall_s=base * (number + 1), ids=[[1, 2, 3, last]])
        for number in range(3)
        for name, base, last in ((steering.WEIR, 1.0, 4), (steering.TRANSFORMERS, 2.0, 5))
    ]
    row = steering.generation_table(answers).splitlines()[-1]
    assert row == "| 1 | 2.0 (1.3–4.0) | 1.0 (0.7–2.0) | 2.00 | 2.00 | 75 % |"


def test_a_program_that_gives_too_few_tokens_is_named():
    program = 'import sys\nfor line in sys.stdin: print(\'{"ids": [[1]], "wall_s": 1, "cpu_s": 1}\', flush=True)'
    with steering.running([sys.executable, "-c", program], 1) as running:
        assert steering.asked(running, [[5]], 1)["ids"] == [[1]]
        with pytest.raises(steering.EngineBenchError, match="2 tokens for each of 1"):
            steering.asked(running, [[5]], 2)
    with (
        steering.running([sys.executable, "-c", "import sys; sys.stdin.readline()"], 1) as running,
        pytest.raises(steering.EngineBenchError, match="ended"),
    ):
        steering.asked(running, [[5]], 1)


@pytest.mark.timeout(400)  # three processes that load the weights, on a machine that may do other work
def test_a_very_small_run_fills_its_place_in_the_document_and_both_programs_say_the_same(
    model_directory: Path, tmp_path: Path
):
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{steering.BEGIN}\n{steering.END}\nafter\n")
    small = ["--threads", "1", "--steps", "1", "--rounds", "1", "--tokens", "3", "--batches", "2"]
    command = [sys.executable, "-m", "loadtests.bench.steering", "--model", str(model_directory), *small]
    done = subprocess.run(
        [*command, "--markdown", str(document)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "Strength 0 at all layers gives the plain logits, bit for bit." in lines
    kinds = [line.split(" | ")[1] for line in lines if line.startswith("| decode, 2 rows |")]
    assert kinds[:2] == ["none", "none, once more"]
    assert len(kinds) == 7
    assert sum(line.startswith("| prompt of 256 tokens |") for line in lines) == 5
    generated = [line for line in lines if line.startswith(("| 1 |", "| 8 |"))]
    assert [line.rpartition(" | ")[2] for line in generated] == ["100 % |", "100 % |"]
