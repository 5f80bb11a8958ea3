"""Each validator finds a mistake that is planted in each kind of file it looks at, and none in what is there.

What `make deploy-check` runs, on a copy of the tree. A check that cannot fail would be worse than none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.check import validators
from deploy.check.base import BASE, rendered
from deploy.check.tools import ToolMissing

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What is deployed, to be changed."""
    shutil.copytree(
        REPOSITORY / "deploy", tmp_path / "deploy", symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


@pytest.fixture
def smallest(tree: Path) -> Path:
    """With one variant of the chart and no kustomization, for validators that take seconds for each."""
    for values in validators.variants(tree):
        if values.name != "two-pods-values.yaml":
            values.unlink()
    shutil.rmtree(tree / "deploy/kustomize")
    return tree


def change(tree: Path, path: str, before: str, after: str) -> None:
    """Textual; the place must be there."""
    text = (tree / "deploy" / path).read_text()
    assert before in text, f"{path} has no {before!r}"
    (tree / "deploy" / path).write_text(text.replace(before, after))


@pytest.mark.parametrize(
    "validator",
    # checkov alone takes a quarter of a minute for all variants; `make deploy-check` has it.
    [validator for validator in validators.VALIDATORS if validator is not validators.checkov],
    ids=lambda validator: validator.__name__,
)
def test_a_validator_has_nothing_against_the_tree_as_it_is(validator):
    assert validator(REPOSITORY) == []


CHART = "helm/weir"
GATEWAY, ENGINE = f"{CHART}/templates/gateway.yaml", f"{CHART}/templates/engine.yaml"
CONTAINERS = f"{CHART}/templates/_containers.tpl"


@pytest.mark.parametrize(
    ("validator", "path", "before", "after", "complaint"),
    [
        (validators.chart, f"{CHART}/values.yaml", "topology: two-pods", "topologie: two-pods", "topologie"),
        (validators.chart, f"{CHART}/ci/two-pods-values.yaml", "engine:", "ingress: {}\nengine:", "ingress"),
        (validators.chart, f"{CHART}/ci/two-pods-values.yaml", "sha256:1111", "latest-1111", "pattern"),
        (validators.chart, GATEWAY, "{{- $sidecar :=", "{{- $sidecat :=", "undefined variable"),
        (validators.chart, f"{CHART}/Chart.yaml", "version: 0.1.0\n", "version: first\n", "version"),
        (validators.kubernetes, GATEWAY, "automountServiceAccountToken:", "automountServiceAccountTokens:", "automountServiceAccountTokens"),
        (validators.kubernetes, CONTAINERS, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: maybe", "maybe"),
        (validators.kubernetes, f"{CHART}/templates/networkpolicies.yaml", "policyTypes:", "policyType:", "policyType"),
        (validators.checkov, CONTAINERS, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "CKV_K8S_22"),
        (validators.checkov, ENGINE, "hostNetwork: false", "hostNetwork: true", "CKV_K8S_19"),
        (validators.checkov, "docker/gateway.Dockerfile", "USER 64100:64100\n", "", "CKV_DOCKER_3"),
        (validators.hadolint, "docker/inference.Dockerfile", "WORKDIR /src", "WORKDIR src", "DL3000"),
        (validators.hadolint, "docker/gateway.Dockerfile", "slim-bookworm@sha256:", "slim-bookwork:sha256:", "gateway.Dockerfile"),
        (validators.compose, "compose.yaml", "network_mode: none", "network_modus: none", "network_modus"),
        (validators.systemd, "systemd/weir.service", "NoNewPrivileges=yes", "NoNewPrivilege=yes", "NoNewPrivilege"),
        (validators.systemd, "systemd/weir.service", "ProtectSystem=strict", "ProtectSystem=mostly", "mostly"),
        (validators.systemd, "systemd/weir-inference.service", "CapabilityBoundingSet=\n", "", "weir-inference.service"),
        (validators.systemd, "systemd/weir-inference.service.d/gpu.conf", "[Service]", "[Service]\nUser=root\nCapabilityBoundingSet=~\nPrivateNetwork=no\nNoNewPrivileges=no", "exposure"),
        (validators.systemd, "systemd/weir-backend-proxy.socket", "ListenStream=", "ListenStreams=", "ListenStreams"),
        (validators.nftables, "nftables/pod.nft", "policy drop;", "policy drops;", "pod.nft"),
        (validators.nftables, "nftables/host.nft", "meta skuid != weir", "meta skuid != nobody-here", "nobody-here"),
        (validators.nftables, "nftables/network.nft", "jump from_engines", "jump from_engine", "from_engine"),
        (validators.policies, "examples/vllm/weir.yaml", "theft_compression: 100", "theft_compresion: 100", "theft_compresion"),
        (validators.policies, "policies/demo.yaml", "share: 60%", "share: sixty", "sixty"),
        (validators.policies, "compose-policy.yaml", "fraction: 50%", "fraction: 500%", "fraction"),
        (validators.policies, f"{CHART}/values.yaml", "fraction: 50%", "fraction: 500%", "fraction"),
    ],
)  # fmt: skip
def test_a_planted_mistake_is_found(smallest, validator, path, before, after, complaint):
    change(smallest, path, before, after)
    found = "\n".join(validator(smallest))
    assert complaint.lower() in found.lower()


@pytest.mark.parametrize(
    ("path", "before", "after", "complaint"),
    [
        ("kustomize/base/kustomization.yaml", "  - weir.yaml", "  - weird.yaml", "weird.yaml"),
        ("kustomize/base/kustomization.yaml", "resources:", "resourcen:", "resourcen"),
        ("kustomize/overlays/example/engine.yaml", "name: weir-engine", "name: weir-motor", "weir-motor"),
        ("kustomize/base/weir.yaml", "dnsPolicy: None", "dnsPolicies: None", "dnsPolicies"),
    ],
)
def test_a_mistake_in_a_kustomization_is_found(tree, path, before, after, complaint):
    for values in validators.variants(tree):
        values.unlink()
    change(tree, path, before, after)
    assert complaint in "\n".join(validators.kubernetes(tree))


@pytest.mark.parametrize(
    ("name", "empty"),
    [("systemd", validators.systemd), ("nftables", validators.nftables)],
)
def test_nothing_to_check_is_a_complaint(tree, name, empty):
    shutil.rmtree(tree / "deploy" / name)
    assert empty(tree)


def test_the_base_of_kustomize_is_what_the_chart_makes():
    assert (REPOSITORY / BASE / "weir.yaml").read_text() == rendered(REPOSITORY), "run `make kustomize`"


def test_a_validator_that_is_not_installed_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIR_TOOLS", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    attempts: list[Callable[[Path], list[str]]] = [validators.chart, validators.kubernetes, validators.hadolint]
    for validator in attempts:
        with pytest.raises(ToolMissing, match="make deploy-tools"):
            validator(REPOSITORY)


def test_every_image_is_pinned_by_its_digest():
    files = [*(REPOSITORY / "deploy/docker").glob("*"), REPOSITORY / "deploy/compose.yaml"]
    named = [
        image
        for file in files
        for image in re.findall(r"^(?:FROM|\s+image:)\s+(\S+)", file.read_text(), re.MULTILINE)
        if image != "python" and not image.endswith(":local")  # a stage, and what the compose file builds
    ]
    assert len(named) >= 5
    assert [image for image in named if not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", image)] == []
