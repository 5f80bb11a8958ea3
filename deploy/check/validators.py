"""One function for each kind of file: what its validator has against it, as lines; none if it is valid.

`tree` is the repository or a copy of it, so that tests can plant a mistake and see it found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from deploy.check.tools import tool
from policy.document import parse
from policy.mistakes import Mistakes

COMMAND_S_MAX = 180
EXPOSURE_MAX = 20  # tenths: systemd's own scale ends at 10.0, "OK" begins below 5
CHART = Path("deploy/helm/weir")
RELEASE, NAMESPACE = "weir", "weir"
# kubernetes-validate has the schemas of Kubernetes alone; these are of the Prometheus operator. tests/deploy/test_chart.py
# says what they hold, field by field.
FOREIGN_KINDS = frozenset({"ServiceMonitor", "PrometheusRule"})


def chart(tree: Path) -> list[str]:
    """helm: the chart and its values' schema, with the values of every variant."""
    found = []
    for values in variants(tree):
        found += _complaints(
            [tool("helm"), "lint", "--strict", "--quiet", str(tree / CHART), "--values", str(values)], tree
        )
        found += _rendered(tree, values)[1]
    return found


def kubernetes(tree: Path) -> list[str]:
    """kubernetes-validate: every object that the chart and kustomize make, before Kubernetes's own schemas."""
    with manifests(tree) as (files, unmade):
        found = [*unmade]
        for file in files:
            command = [tool("kubernetes-validate"), "--strict", "--quiet", str(file)]
            kinds = {document.get("kind") for document in yaml.safe_load_all(file.read_text()) if document}
            if not kinds - FOREIGN_KINDS:
                found.append(f"{file.name}: nothing in it is Kubernetes's own")
            found += _complaints(command, tree)
    return found


def checkov(tree: Path) -> list[str]:
    """checkov: what is unwise in those objects, and in container files."""
    environment = {**os.environ, "BC_SKIP_MAPPING": "TRUE"}  # else it asks a server
    scan = [tool("checkov"), "--skip-download", "--compact", "--quiet"]
    with manifests(tree) as (files, unmade):
        found = [*unmade]
        found += _complaints([*scan, "--framework", "kubernetes", "--file", *map(str, files)], tree, environment)
        images = map(str, container_files(tree))
        found += _complaints([*scan, "--framework", "dockerfile", "--file", *images], tree, environment)
    return found


def hadolint(tree: Path) -> list[str]:
    """hadolint: container files."""
    return _complaints([tool("hadolint"), "--failure-threshold", "info", *map(str, container_files(tree))], tree)


def compose(tree: Path) -> list[str]:
    """The compose specification's schema. What services may reach each other is in tests/deploy/test_compose.py."""
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    return _complaints([*command, *map(str, sorted((tree / "deploy").rglob("compose.yaml")))], tree)


def systemd(tree: Path) -> list[str]:
    """systemd-analyze: every unit as it would be loaded, with each of its drop-ins, and how exposed it is."""
    analyze = tool("systemd-analyze")
    units = sorted((tree / "deploy/systemd").glob("weir*.*"))
    found = [] if units else ["deploy/systemd: no units"]
    for drop_in in [None, *sorted((tree / "deploy/systemd").glob("*.service.d/*.conf"))]:
        with _root(units, drop_in) as root:
            names = [unit.name for unit in units if unit.suffix in (".service", ".socket", ".timer")]
            if drop_in is not None:
                names = [drop_in.parent.name.removesuffix(".d")]
            for name in names:
                verify = [analyze, f"--root={root}", "--man=no", "--recursive-errors=no", "verify", name]
                found += _complaints(verify, tree, also_if_silent=False)
                if name.endswith(".service"):
                    judge = [
                        analyze,
                        f"--root={root}",
                        "security",
                        "--offline=true",
                        f"--threshold={EXPOSURE_MAX}",
                        name,
                    ]
                    found += _complaints(judge, tree)
    return found


def nftables(tree: Path) -> list[str]:
    """nft, which asks the kernel: in a network namespace of its own, so that the machine's rules stay as they are."""
    inside = [tool("unshare"), "--net"] if os.geteuid() == 0 else [tool("unshare"), "--map-root-user", "--net"]
    files = sorted((tree / "deploy/nftables").glob("*.nft"))
    found = [] if files else ["deploy/nftables: no rules"]
    for file in files:
        with tempfile.TemporaryDirectory() as directory:
            rules = Path(directory) / file.name
            rules.write_text(with_numbers(file.read_text()))
            found += _complaints([*inside, tool("nft"), "--check", "--file", str(rules)], tree)
    return found


def policies(tree: Path) -> list[str]:
    """The policy's own parser: every example, and what the chart's variants make of theirs."""
    places = ("policies/*.yaml", "compose-policy.yaml", "examples/*/weir.yaml", "kustomize/overlays/*/weir.yaml")
    files = [file for place in places for file in sorted((tree / "deploy").glob(place))]
    texts = [(str(file.relative_to(tree)), file.read_text()) for file in files]
    with manifests(tree) as (rendered, found):
        for file in rendered:
            texts += [
                (file.name, document["data"]["weir.yaml"])
                for document in yaml.safe_load_all(file.read_text())
                if document and document["kind"] == "ConfigMap" and "weir.yaml" in document["data"]
            ]
    for name, text in texts:
        policy = parse(text, name=name)
        if isinstance(policy, Mistakes):
            found.append(policy.render())
    return found


VALIDATORS = (chart, kubernetes, checkov, hadolint, compose, systemd, nftables, policies)


def variants(tree: Path) -> list[Path]:
    """Values to try the chart with: one file for each variant, and the examples'."""
    return [*sorted((tree / CHART / "ci").glob("*.yaml")), *sorted((tree / "deploy/examples").glob("*/values.yaml"))]


def container_files(tree: Path) -> list[Path]:
    """Those that the images are built from."""
    return sorted((tree / "deploy/docker").glob("*.Dockerfile"))


def with_numbers(rules: str) -> str:
    """Rules that name users, for a machine that does not have them: with the numbers that deploy/systemd/weir.sysusers gives."""
    return rules.replace("skuid weir-inference", "skuid 64101").replace("skuid weir ", "skuid 64100 ").replace(
        "skuid != weir ", "skuid != 64100 "
    )  # fmt: skip


@contextmanager
def manifests(tree: Path) -> Iterator[tuple[list[Path], list[str]]]:
    """Files of what the chart makes of each variant, and of what kustomize builds; and what went wrong in making them."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        files = []
        for values in variants(tree):
            text, complaints = _rendered(tree, values)
            found += complaints
            name = values.stem if values.parent.name == "ci" else f"{values.parent.name}-values"
            files.append(Path(directory) / f"{name}.yaml")
            files[-1].write_text(text)
        for place in sorted((tree / "deploy/kustomize").rglob("kustomization.yaml")):
            text, complaints = kustomized(place.parent, tree)
            found += complaints
            files.append(Path(directory) / f"kustomize-{place.parent.name}.yaml")
            files[-1].write_text(text)
        yield files, found


def kustomized(place: Path, tree: Path) -> tuple[str, list[str]]:
    """What `kubectl kustomize` builds of a directory, and its complaints."""
    done = _run([tool("kubectl"), "kustomize", str(place)], tree)
    return done.stdout, _said(done)


def _rendered(tree: Path, values: Path) -> tuple[str, list[str]]:
    command = [tool("helm"), "template", RELEASE, str(tree / CHART), "--namespace", NAMESPACE, "--values", str(values)]
    done = _run(command, tree)
    return done.stdout, _said(done)


@contextmanager
def _root(units: Sequence[Path], drop_in: Path | None) -> Iterator[Path]:
    """A file system with the units and with programs where they expect them, as systemd-analyze looks at it."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        place = root / "etc/systemd/system"
        place.mkdir(parents=True)
        for unit in units:
            if unit.is_file():
                shutil.copy(unit, place)
                for program in _programs(unit):
                    path = root / program.lstrip("/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch(mode=0o755)
        if drop_in is not None:
            (place / drop_in.parent.name).mkdir()
            shutil.copy(drop_in, place / drop_in.parent.name)
        for target in (
            "sysinit",
            "basic",
            "shutdown",
            "multi-user",
            "network-online",
            "network",
            "network-pre",
            "sockets",
        ):
            (place / f"{target}.target").write_text("[Unit]\nDescription=of the system\n")
        yield root


def _programs(unit: Path) -> Iterator[str]:
    for line in unit.read_text().splitlines():
        name, _, command = line.partition("=")
        if name.startswith("Exec") and command:
            yield command.lstrip("-+!@:").split()[0]


def _complaints(
    command: Sequence[str], tree: Path, environment: dict[str, str] | None = None, *, also_if_silent: bool = True
) -> list[str]:
    done = _run(command, tree, environment)
    said = _said(done)
    if not also_if_silent and done.returncode == 0 and done.stderr.strip():
        said = [done.stderr.strip()]  # systemd-analyze verify warns and returns 0
    return said


def _said(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [f"{' '.join(done.args)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}".strip()] if done.returncode else []


def _run(
    command: Sequence[str], tree: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=COMMAND_S_MAX
    )
