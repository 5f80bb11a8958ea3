"""Real Prometheus servers for tests, with the configuration that operators get: found or said to be missing, never skipped."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.postgres import free_port

CONFIGURATION = Path(__file__).parents[1] / "deploy" / "prometheus"
START_S_MAX = 30.0
SCRAPE_S = 1


@cache
def program(name: str) -> str:
    """`prometheus`, `promtool`, `amtool`."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} was not found: `make prometheus` installs it")
    return found


class Prometheus:
    """One server in its own directory, which scrapes every second what it is told to."""

    def __init__(self, directory: Path, *, targets: Mapping[str, str]) -> None:
        """`targets`: addresses by the name of their file, `weir` or `inference`."""
        self._directory = directory
        self.url = f"http://127.0.0.1:{free_port()}"
        shutil.copytree(CONFIGURATION, directory, dirs_exist_ok=True)
        text, changed = re.subn(
            r"_interval: 15s", f"_interval: {SCRAPE_S}s", (directory / "prometheus.yaml").read_text()
        )
        assert changed == 2
        (directory / "prometheus.yaml").write_text(text)
        for name, address in targets.items():
            (directory / "targets" / f"{name}.yaml").write_text(yaml.safe_dump([{"targets": [address]}]))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Prometheus:
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={self._directory / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={self._directory / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )
        deadline_s = time.monotonic() + START_S_MAX
        while not self._ready():
            log_text = (self._directory / "prometheus.log").read_text
            assert self._process.poll() is None, log_text()
            assert time.monotonic() < deadline_s, log_text()
            time.sleep(0.05)
        return self

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ask(self, path: str, **parameters: str | float) -> Any:
        """The `data` of an answer of the HTTP API. Raises AssertionError with what the server says is wrong."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                document = json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                raise AssertionError(f"{parameters}: {refused.read().decode()}") from refused
        assert document["status"] == "success", document
        assert not document.get("warnings"), document
        return document["data"]

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
