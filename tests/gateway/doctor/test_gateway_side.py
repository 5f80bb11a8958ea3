"""Backends are where the policy says and nowhere else."""

import os
import socket

import pytest
import yaml

from gateway.doctor.finding import Verdict
from gateway.doctor.gateway import gateway_side
from gateway.doctor.surroundings import own_addresses
from policy.document import parse
from tests.e2e.processes import policy as rules_of


def findings(upstream, directory, **changes):
    parsed = parse(yaml.safe_dump(rules_of(upstream, directory) | changes), name="weir.yaml")
    assert not hasattr(parsed, "render"), parsed.render()
    return gateway_side(parsed, limit_s=1.0)


def of(found, kind):
    return [finding for finding in found if finding.kind == kind]


@pytest.fixture
def backend(tmp_path):
    directory = tmp_path / "backend"
    directory.mkdir(mode=0o770)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "backend.sock"))
        listener.listen()
        (directory / "backend.sock").chmod(0o770)
        yield directory / "backend.sock"


def test_a_backend_on_a_socket_of_its_group_is_right(backend, tmp_path):
    answers, rights = of(findings(f"unix:{backend}", tmp_path), "backend")
    assert answers.verdict is Verdict.RIGHT
    assert rights.verdict is Verdict.CLOSED


def test_a_socket_that_everybody_may_connect_to_is_open(backend, tmp_path):
    backend.chmod(0o777)
    backend.parent.chmod(0o755)
    assert of(findings(f"unix:{backend}", tmp_path), "backend")[1].verdict is Verdict.OPEN
    backend.parent.chmod(0o750)
    assert of(findings(f"unix:{backend}", tmp_path), "backend")[1].verdict is Verdict.CLOSED


def test_a_directory_in_which_everybody_may_put_another_socket_is_open(backend, tmp_path):
    backend.parent.chmod(0o777)
    assert of(findings(f"unix:{backend}", tmp_path), "backend")[1].verdict is Verdict.OPEN


def test_a_backend_that_is_not_there_is_wrong(tmp_path):
    answers, rights = of(findings(f"unix:{tmp_path}/none.sock", tmp_path), "backend")
    assert answers.verdict is rights.verdict is Verdict.WRONG


def test_a_backend_that_listens_on_all_interfaces_is_open(tmp_path):
    assert own_addresses(), "this machine has no address but loopback, so this cannot be tried"
    with socket.create_server(("0.0.0.0", 0)) as careless, socket.create_server(("127.0.0.1", 0)) as careful:
        for listener, is_open in ((careless, True), (careful, False)):
            found = findings(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path)
            assert of(found, "backend")[0].verdict is Verdict.RIGHT
            assert (Verdict.OPEN in {finding.verdict for finding in of(found, "backend, other ways")}) is is_open


@pytest.mark.parametrize(
    ("admin", "verdict"),
    [("127.0.0.1:9", Verdict.CLOSED), ("0.0.0.0:9", Verdict.UNTESTED), ("unix:/run/weir/admin.sock", Verdict.CLOSED)],
)
def test_an_admin_port_that_is_not_on_loopback_is_to_be_tried_from_the_engine(tmp_path, admin, verdict):
    (finding,) = of(findings("http://127.0.0.1:1", tmp_path, admin=admin), "admin port")
    assert finding.verdict is verdict
    if verdict is Verdict.UNTESTED:
        assert "--from engine --target tcp:127.0.0.1:9" in finding.detail


def test_root_is_told_that_it_is_root(tmp_path):
    (finding,) = of(findings("http://127.0.0.1:1", tmp_path), "user")
    assert (finding.verdict is Verdict.UNTESTED) == (os.geteuid() == 0)
