from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from inference.prepare import PrepareError, is_prepared, prepare
from inference.weights import digest_of


def test_preparing_again_changes_nothing(model_directory: Path):
    before = {path.name: path.stat().st_mtime_ns for path in model_directory.iterdir()}
    assert prepare(model_directory, console=Console(quiet=True)) is False
    assert {path.name: path.stat().st_mtime_ns for path in model_directory.iterdir()} == before


def test_the_manifest_names_the_source_and_the_digest_of_every_file(model_directory: Path):
    manifest = json.loads((model_directory / "manifest.json").read_text())
    assert manifest["source"]["sha256"] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert set(manifest["outputs"]) == {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"}
    for name, facts in manifest["outputs"].items():
        assert digest_of(model_directory / name) == facts["sha256"]


def test_a_directory_with_one_changed_byte_is_not_up_to_date(model_directory: Path, tmp_path: Path):
    for path in model_directory.iterdir():
        os.link(path, tmp_path / path.name)
    assert is_prepared(tmp_path)
    changed = tmp_path / "config.json"
    text = changed.read_text()
    changed.unlink()
    changed.write_text(text.replace("576", "577", 1))
    assert not is_prepared(tmp_path)


def test_a_foreign_directory_is_never_overwritten(tmp_path: Path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(PrepareError, match="not made by this command"):
        prepare(tmp_path, console=Console(quiet=True))
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_an_interrupted_run_leaves_neither_a_model_nor_rubbish(tmp_path: Path):
    out = tmp_path / "model"
    # Processes that run tests side by side ignore the signal, and what they start inherits that.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "inference", "prepare", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert list(tmp_path.iterdir()) == []
