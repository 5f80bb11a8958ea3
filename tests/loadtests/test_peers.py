"""Peers from elsewhere: pinned, found or named as missing with the reason, and started beside ours."""

import io
import re
from contextlib import ExitStack

import pytest
from rich.console import Console

from loadtests.bench import installation, lineup, report
from loadtests.bench.installation import KINDS, Missing, Node, Python, System
from loadtests.bench.lineup import PEERS, Lineup
from loadtests.bench.peer import Peer, PeerError, Target, free_port, module
from loadtests.bench.roster import Site

SILENT = Console(file=io.StringIO())


def site(directory):
    return Site(directory=directory, burst_port=free_port(), paced_port=free_port(), key="k")


def dying(name):
    """A peer that says why it ends."""
    target = Target(port=1, key="")
    return lambda _: Peer(
        name=name, burst=target, paced=target, argv=module("no_such_module_at_all"), ready_url="http://127.0.0.1:1/"
    )


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if isinstance(kind, Python)])
def test_every_package_of_a_python_peer_is_pinned(name):
    lines = (installation.PINS / f"{name}.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    assert installation.versions(name)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if isinstance(kind, Node)])
def test_a_node_peer_is_pinned_by_a_lock_file(name):
    assert '"lockfileVersion"' in (installation.PINS / name / "package-lock.json").read_text()
    assert re.fullmatch(r"[0-9.]+", installation.versions(name))


def test_a_peer_that_was_never_installed_is_missing_and_says_what_would_help(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "INSTALLED", tmp_path)
    for name, kind in KINDS.items():
        if not isinstance(kind, System):
            with pytest.raises(Missing, match="not installed"):
                installation.program(name)


def test_a_peer_at_other_versions_than_the_pinned_ones_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "INSTALLED", tmp_path)
    (tmp_path / "envoy").mkdir()
    (tmp_path / "envoy" / ".installed").write_text("the digest of last year's pins")
    with pytest.raises(Missing, match="other versions"):
        installation.program("envoy")


def test_an_installation_that_fails_keeps_its_reason_for_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "INSTALLED", tmp_path / "installed")
    monkeypatch.setattr(installation, "PINS", tmp_path)
    (tmp_path / "portkey").mkdir()  # no lock file: npm refuses
    with pytest.raises(Missing) as installing:
        installation.install("portkey")
    with pytest.raises(Missing) as looking:
        installation.program("portkey")
    assert str(looking.value) == str(installing.value)
    assert str(installing.value).startswith("did not install")


def test_a_stranger_that_does_not_start_is_left_out_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setitem(lineup.PEERS, "envoy", dying("envoy"))
    line = Lineup()
    with ExitStack() as stack:
        line.start(["direct", "envoy"], site(tmp_path), stack, SILENT)
    assert [peer.peer.name for peer in line.started] == ["direct"]
    assert "no_such_module_at_all" in line.missing["envoy"]
    assert line.remarks() == [f"Missing: envoy: {line.missing['envoy']}"]


def test_one_of_ours_that_does_not_start_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(lineup.PEERS, "floor", dying("floor"))
    with ExitStack() as stack, pytest.raises(PeerError, match="no_such_module_at_all"):
        Lineup().start(["floor"], site(tmp_path), stack, SILENT)


def test_a_missing_peer_has_a_row_of_its_own_and_its_reason_above_the_table():
    text = report.markdown([], "measured on a machine\nMissing: envoy: no such wheel", missing=["envoy"])
    assert "\n\nMissing: envoy: no such wheel\n\n" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| envoy |")]
    assert row.startswith("| envoy | missing | – |")
    assert row.count("|") == len(report.COLUMNS) + 1


def test_every_peer_that_can_be_installed_takes_part():
    assert KINDS.keys() <= PEERS.keys()
