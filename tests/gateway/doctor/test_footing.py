"""What the gateway stands on."""

import os
import time

import pytest

from gateway.doctor.finding import Verdict, examine
from gateway.doctor.footing import Mount, file_system, footing, mounts, servers
from policy.document import parse
from tests.e2e.processes import policy as rules_of

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /run rw,nosuid - tmpfs tmpfs rw
31 22 0:26 / /var/lib/weir rw master:3 - xfs /dev/sdb rw
32 22 0:27 / /var/lib/weir rw - overlay overlay rw
33 22 0:28 / /with\\040space rw - nfs4 server:/x rw
"""


def policy(directory, **changes):
    import yaml

    parsed = parse(yaml.safe_dump(rules_of("http://127.0.0.1:1", directory) | changes), name="weir.yaml")
    assert not hasattr(parsed, "render"), parsed.render()
    return parsed


def found(rules):
    return {finding.kind: finding for finding in examine(list(footing(rules)), limit_s=1.0)}


def test_the_file_system_of_a_path_is_the_last_of_the_deepest_mounts_above_it():
    mounted = mounts(MOUNTS)
    assert mounted[-1] == Mount(point="/with space", kind="nfs4")
    assert file_system(mounted, "/var/lib/weir/audit") == "overlay"
    assert file_system(mounted, "/var/lib/weird") == "ext4"
    assert file_system(mounted, "/run") == "tmpfs"
    assert file_system([], "/run") == "unknown"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://weir@db.internal/weir", [("db.internal", 5432)]),
        (
            "postgresql://weir@db1:5433,db2,[fd00::1]:5434/weir?standbys=1",
            [("db1", 5433), ("db2", 5432), ("fd00::1", 5434)],
        ),
        ("postgresql://weir@/weir?host=/run/postgresql", [("/run/postgresql", 5432)]),
    ],
)
def test_all_servers_of_a_ledger_are_asked(url, named):
    assert servers(url) == named


def test_a_ledger_that_forgets_is_wrong(tmp_path):
    assert found(policy(tmp_path, ledger="memory"))["ledger"].verdict is Verdict.WRONG


def test_a_ledger_that_does_not_answer_is_wrong(tmp_path):
    finding = found(policy(tmp_path, ledger="postgresql://weir@127.0.0.1:1/weir"))["ledger"]
    assert (finding.verdict, finding.detail) == (Verdict.WRONG, "nobody listens")


def test_an_audit_directory_that_others_may_read_is_wrong(tmp_path):
    directory = tmp_path / "audit"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    finding = found(policy(tmp_path))["disk"]
    assert (finding.verdict, "chmod 700" in finding.detail) == (Verdict.WRONG, True)


def test_an_audit_directory_that_cannot_be_made_is_wrong(tmp_path):
    rules = policy(tmp_path, audit={"directory": str(tmp_path / "no" / "such" / "audit")})
    assert found(rules)["disk"].verdict is Verdict.WRONG


def test_files_from_the_future_say_that_the_clock_was_set_back(tmp_path):
    directory = tmp_path / "audit"
    directory.mkdir(mode=0o700)
    file = directory / "segment"
    file.touch()
    rules = policy(tmp_path)

    def verdict():
        findings = examine([probe for probe in footing(rules) if probe.how == "compared with files"], limit_s=1.0)
        return findings[0].verdict

    assert verdict() is Verdict.RIGHT
    later_s = time.time() + 3600
    os.utime(file, (later_s, later_s))
    assert verdict() is Verdict.WRONG


def test_a_licence_that_is_missing_is_wrong(tmp_path):
    key = "weir-signer-ed25519:anna:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    rules = policy(
        tmp_path, licence={"file": str(tmp_path / "licence.json"), "keys": [key], "threshold": 1, "gateway": "gate-1"}
    )
    finding = found(rules)["licence"]
    assert finding.verdict is Verdict.WRONG
    assert finding.detail.startswith("missing: ")
