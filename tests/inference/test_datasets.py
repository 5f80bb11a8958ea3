from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from inference.datasets import NAMES, Dataset, load

REPOSITORY = Path(__file__).parents[2]
FILES = REPOSITORY / "inference" / "datasets"


@pytest.fixture(params=NAMES)
def dataset(request) -> Dataset:
    return load(request.param)


def texts_of(dataset: Dataset) -> list[str]:
    return [text for side in (dataset.positive, dataset.negative) for text in (*side.train, *side.test)]


def test_there_are_as_many_texts_as_the_readme_says(dataset: Dataset):
    readme = (FILES / "README.md").read_text()
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{dataset.name}` |")]
    _, _, sides, paired, counts, _, _ = (cell.strip() for cell in row.split("|"))
    assert sides == f"`{dataset.positive.name}`, `{dataset.negative.name}`"
    assert paired == ("yes" if dataset.is_paired else "no")
    for side in (dataset.positive, dataset.negative):
        assert counts == f"{len(side.train)}, {len(side.test)}"


def test_harmful_and_harmless_instructions_are_128_each_and_the_others_48_pairs(dataset: Dataset):
    for side in (dataset.positive, dataset.negative):
        if dataset.name == "harmfulness":
            assert (len(side.train), len(side.test)) == (64, 64)
        else:
            assert len(side.train) + len(side.test) >= 48
            assert len(side.test) >= 16


def test_every_line_is_an_example_of_the_described_form(dataset: Dataset):
    head, *examples = [json.loads(line) for line in (FILES / f"{dataset.name}.jsonl").read_text().splitlines()]
    assert head.keys() == {"name", "format", "positive", "negative", "is_paired", "is_instruction"}
    assert (head["name"], head["format"]) == (dataset.name, 1)
    sides = {head["positive"], head["negative"]}
    for one in examples:
        assert one["split"] in ("train", "test")
        named = one.keys() - {"split"}
        assert named == sides if dataset.is_paired else len(named) == 1 and named < sides
        assert all(one[side] == one[side].strip() and len(one[side]) >= 8 for side in named)


def test_no_two_texts_are_nearly_the_same(dataset: Dataset):
    texts = texts_of(dataset)
    assert len({text.casefold() for text in texts}) == len(texts)
    pairs = set()
    if dataset.is_paired:  # the two of a pair are meant to be alike
        for side in ("train", "test"):
            pairs |= set(zip(getattr(dataset.positive, side), getattr(dataset.negative, side), strict=True))
    sides = {text: side.name for side in (dataset.positive, dataset.negative) for text in (*side.train, *side.test)}
    close = [
        (first, second)
        for first, second in itertools.combinations(texts, 2)
        # A harmful text and its harmless sibling may share their shape, not more.
        if (first, second) not in pairs and likeness(first, second) > (0.75 if sides[first] == sides[second] else 0.85)
    ]
    assert close == []


def likeness(first: str, second: str) -> float:
    """Share of words, in order, that two texts have in common."""
    a, b = first.casefold().split(), second.casefold().split()
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    return matcher.ratio() if matcher.quick_ratio() > 0.7 else 0.0


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_sides_are_of_about_the_same_length(dataset: Dataset, split: str):
    words = [[len(text.split()) for text in getattr(side, split)] for side in (dataset.positive, dataset.negative)]
    means = [sum(side) / len(side) for side in words]
    assert 0.85 < means[0] / means[1] < 1 / 0.85


def test_both_sides_have_short_and_long_texts(dataset: Dataset):
    for side in (dataset.positive, dataset.negative):
        words = [len(text.split()) for text in (*side.train, *side.test)]
        assert min(words) <= 6
        assert max(words) >= 14


@pytest.mark.parametrize("split", ["train", "test"])
def test_questions_are_about_as_frequent_on_both_sides(dataset: Dataset, split: str):
    shares = [
        sum(text.endswith("?") for text in getattr(side, split)) / len(getattr(side, split))
        for side in (dataset.positive, dataset.negative)
    ]
    assert abs(shares[0] - shares[1]) <= 0.125  # two of sixteen


def test_no_text_of_training_is_in_the_test_split(dataset: Dataset):
    for side in (dataset.positive, dataset.negative):
        assert not set(side.train) & set(side.test)


def test_a_dataset_cannot_be_changed_and_an_unknown_one_is_refused():
    dataset = load("sentiment")
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"  # type: ignore[misc]
    for name in ("nothing", "../limits", ""):
        with pytest.raises(KeyError):
            load(name)


def test_the_digest_is_that_of_the_file(dataset: Dataset):
    import hashlib

    content = (FILES / f"{dataset.name}.jsonl").read_bytes()
    assert dataset.digest_sha256 == hashlib.sha256(content).hexdigest()


def test_an_installed_wheel_has_the_texts(tmp_path: Path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    # A copy, so that setuptools leaves no build directory in the working tree.
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if name.startswith("inference/datasets/") or name in (
            "pyproject.toml",
            "README.md",
            "LICENSE",
            "inference/__init__.py",
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run([*build, str(source)], check=True, timeout=150)
    (wheel,) = tmp_path.glob("weir-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {f"inference/datasets/{name}.jsonl" for name in NAMES} | {"inference/datasets/README.md"} <= names
        archive.extractall(tmp_path / "installed")
    script = "import inference.datasets as d; assert 'installed' in d.__file__; print(*(d.load(n).digest_sha256 for n in d.NAMES))"
    shown = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == [load(name).digest_sha256 for name in NAMES]
