"""How many workers: as many as are asked for, or as CPUs may be used."""

import argparse
import os

import pytest

from gateway.commands import serve


@pytest.fixture
def workers(monkeypatch, tmp_path):
    """What `--workers` makes of a word, on 8 CPUs under a control group's quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def workers(word, *, quota=None):
        file = tmp_path / "cpu.max"
        if quota is not None:
            file.write_text(f"{quota}\n")
        monkeypatch.setattr(serve, "_CPU_QUOTA", file)
        parser = argparse.ArgumentParser()
        serve.add(parser.add_subparsers())
        return parser.parse_args(["serve", *(["--workers", word] if word is not None else [])]).workers

    return workers


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        (None, 8),
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("9000000 100000", 8),
    ],
)
def test_auto_is_one_for_each_cpu_that_may_be_used(workers, quota, count):
    assert workers("auto", quota=quota) == count


def test_a_number_is_taken_as_it_is_and_one_is_the_default(workers):
    assert workers("3") == 3
    assert workers(None) == 1
