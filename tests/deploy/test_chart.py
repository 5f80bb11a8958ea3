"""What the chart promises, read from what helm makes of it: who may talk to whom, with which rights, for how long."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.check.tools import tool
from deploy.check.validators import CHART, variants
from gateway.keeper import DRAIN_MARGIN_S
from policy.limits import DRAIN_S_MAX

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
VARIANTS = {f"{values.parent.name}/{values.stem}": values for values in variants(REPOSITORY)}
TWO_PODS, FULL, SIDECAR, OPEN = (
    f"ci/{name}-values" for name in ("two-pods", "two-pods-everything", "sidecar", "sidecar-open")
)


def helm(variant: str, *options: str, command: str = "template") -> subprocess.CompletedProcess[str]:
    words = [tool("helm"), command, "weir", str(REPOSITORY / CHART), "--namespace", "weir"]
    words += ["--values", str(VARIANTS[variant]), *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@cache
def objects(variant: str) -> dict[tuple[str, str], dict[str, Any]]:
    done = helm(variant)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


def pods(variant: str) -> list[dict[str, Any]]:
    kinds = ("StatefulSet", "Deployment")
    return [made["spec"]["template"] for (kind, _), made in objects(variant).items() if kind in kinds]


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]}


def selects(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    return wanted.items() <= labels.items()


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_container_has_more_rights_than_it_needs(variant):
    for pod in pods(variant):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert not any(spec[shared] for shared in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"))
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for name, container in containers(pod).items():
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["privileged"] is False
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert security["capabilities"]["drop"] == ["ALL"]
            loads_rules = name == "owner-rules"
            assert security["capabilities"].get("add", []) == (["NET_ADMIN"] if loads_rules else [])
            assert security["runAsNonRoot"] is not loads_rules
            assert "@sha256:" in container["image"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_engine_and_gateway_are_different_users_and_share_only_the_sockets_directory(variant):
    made = {name: container for pod in pods(variant) for name, container in containers(pod).items()}
    assert made["gateway"]["securityContext"]["runAsUser"] == 64100
    assert made["engine"]["securityContext"]["runAsUser"] == 64101
    mounts = [{mount["name"] for mount in made[name]["volumeMounts"]} for name in ("gateway", "engine")]
    in_one_pod = len(pods(variant)) == 1
    assert mounts[0] & mounts[1] == ({"backend"} if in_one_pod else set())


@pytest.mark.parametrize("variant", [name for name in VARIANTS if len(pods(name)) == 2])
def test_in_two_pods_the_engine_may_begin_nothing_and_answers_gateways_alone(variant):
    engine, gateway = objects(variant)["Deployment", "weir-engine"], objects(variant)["StatefulSet", "weir"]
    labels = engine["spec"]["template"]["metadata"]["labels"]
    policies = [
        made for (kind, _), made in objects(variant).items() if kind == "NetworkPolicy" and selects(made, labels)
    ]
    (policy,) = policies  # rules of several would add up
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["spec"]["egress"] == []
    (rule,) = policy["spec"]["ingress"]
    (peer,) = rule["from"]
    assert set(peer) == {"podSelector"}  # of this namespace
    assert peer["podSelector"]["matchLabels"].items() <= gateway["spec"]["template"]["metadata"]["labels"].items()
    assert not peer["podSelector"]["matchLabels"].items() <= labels.items()
    assert rule["ports"] == [{"protocol": "TCP", "port": 8000}]
    assert engine["spec"]["template"]["spec"]["dnsPolicy"] == "None"
    assert engine["spec"]["template"]["spec"]["dnsConfig"] == {"nameservers": ["127.0.0.1"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_engine_is_among_nobody_who_may_read_the_admin_port(variant):
    engines = [pod["metadata"]["labels"] for pod in pods(variant) if "engine" in containers(pod)]
    policy = objects(variant)["NetworkPolicy", "weir-gateway"]
    (rule,) = [rule for rule in policy["spec"]["ingress"] if {"protocol": "TCP", "port": 9090} in rule["ports"]]
    assert len(rule["ports"]) == 1
    for peer in rule["from"]:
        assert "namespaceSelector" in peer or not any(
            peer["podSelector"]["matchLabels"].items() <= labels.items() for labels in engines
        )


def test_a_sidecars_pod_may_begin_nothing_unless_somebody_says_so():
    assert objects(SIDECAR)["NetworkPolicy", "weir-gateway"]["spec"]["egress"] == []


def test_in_one_pod_rules_are_loaded_first_then_the_gateway_starts_then_the_doctor_tries_then_the_engine():
    (pod,) = pods(SIDECAR)
    assert [each["name"] for each in pod["spec"]["initContainers"]] == ["owner-rules", "gateway", "doctor"]
    assert [each["name"] for each in pod["spec"]["containers"]] == ["engine"]
    made = containers(pod)
    assert made["gateway"]["restartPolicy"] == "Always"
    assert made["doctor"]["securityContext"]["runAsUser"] == made["engine"]["securityContext"]["runAsUser"]
    assert "--target=tcp:127.0.0.1:9090" in made["doctor"]["args"]
    assert objects(SIDECAR)["ConfigMap", "weir-owner-rules"]["data"]["pod.nft"].strip() == (
        (DEPLOY / "nftables/pod.nft").read_text().strip()
    )


@pytest.mark.parametrize(
    ("variant", "said", "unsaid"),
    [
        (OPEN, "NOTHING", "nftables rules inside the pod"),
        (SIDECAR, "nftables rules inside the pod", "NOTHING"),
        (TWO_PODS, "a NetworkPolicy on a pod of its own", "NOTHING"),
    ],
)
def test_the_notes_say_what_really_isolates(variant, said, unsaid):
    done = helm(variant, "--dry-run=client", command="install")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert said in notes
    assert unsaid not in notes


def test_the_alerts_are_those_of_the_repository():
    rule = objects(FULL)["PrometheusRule", "weir"]
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    recording = DEPLOY / "prometheus/recording.yaml"
    groups += yaml.safe_load(recording.read_text())["groups"] if recording.exists() else []
    assert rule["spec"] == {"groups": groups}
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"


def test_the_dashboards_are_those_of_the_repository():
    data = objects(FULL)["ConfigMap", "weir-dashboards"]["data"]
    boards = {path.name: json.loads(path.read_text()) for path in (DEPLOY / "grafana/dashboards").glob("*.json")}
    assert boards
    assert {name: json.loads(text) for name, text in data.items()} == boards


def test_prometheus_scrapes_the_admin_port_of_every_gateway():
    monitor = objects(FULL)["ServiceMonitor", "weir"]
    assert monitor["spec"]["endpoints"] == [{"port": "admin", "path": "/metrics", "interval": "30s"}]
    service = objects(FULL)["Service", "weir-gateways"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [port["name"] for port in service["spec"]["ports"]] == ["admin"]
    assert not service["spec"]["selector"].items() <= objects(FULL)["Deployment", "weir-engine"]["spec"]["template"]["metadata"]["labels"].items()  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_open_answers_have_the_time_that_a_drain_gives_them(variant):
    stateful_set = objects(variant)["StatefulSet", "weir"]["spec"]["template"]["spec"]
    engine_s = 60 if len(pods(variant)) == 1 else 0  # it ends first
    assert stateful_set["terminationGracePeriodSeconds"] - engine_s >= DRAIN_S_MAX + DRAIN_MARGIN_S


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_spent_outlives_the_release(variant):
    spec = objects(variant)["StatefulSet", "weir"]["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


@pytest.mark.parametrize(
    ("variant", "options", "complaint"),
    [
        (TWO_PODS, ["--set", "gateway.replicas=2"], "with SQLite each gateway would have all the budgets to itself"),
        (TWO_PODS, ["--set", "policy.secretName=mine"], "exactly one of text, configMapName and secretName"),
        (TWO_PODS, ["--set", "policy.text="], "exactly one of text, configMapName and secretName"),
        (TWO_PODS, ["--set", "image.digest="], "pin the image"),
        (TWO_PODS, ["--set", "engine.image.digest="], "pin the image"),
        (TWO_PODS, ["--set", "image.tag=latest"], "tag"),
        (TWO_PODS, ["--set", "topology=one-pod"], "topology"),
        (TWO_PODS, ["--set", "gateway.terminationGracePeriodSeconds=10"], "terminationGracePeriodSeconds"),
    ],
)
def test_a_release_that_would_not_hold_is_refused(variant, options, complaint):
    done = helm(variant, *options)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_several_gateways_take_a_shared_ledger():
    assert objects(FULL)["StatefulSet", "weir"]["spec"]["replicas"] == 3
