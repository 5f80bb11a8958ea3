"""The bench: its sans-IO readers on every split of the bytes, its arithmetic, and one very small run of the whole."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from loadtests.bench import answer, audit, ledger, report, upstream
from loadtests.bench.chunked import CHUNK_BYTES_MAX, ChunkedBody, ProtocolError
from loadtests.bench.client import NUMBER, Outcome
from loadtests.bench.cpu import CpuReading, read_cpu, resident_mib, spent_s, threads_lost
from loadtests.bench.measure import Sample, admissions, percentile
from loadtests.bench.peer import Peer, PeerError, Target, free_port, module, running
from loadtests.bench.response import Response
from loadtests.bench.roster import Site, gateway
from loadtests.bench.scenario import http_request

ROOT = Path(__file__).resolve().parents[2]

CHUNKED_WIRE = b"5\r\nhello\r\n1;name=value\r\n \r\nA\r\nbig world!\r\n0\r\nX-Trailer: yes\r\n\r\n"
CHUNKED_BODY = b"hello big world!"


# --- chunked bodies


def test_a_chunked_body_reads_the_same_however_its_bytes_are_split():
    for first in range(len(CHUNKED_WIRE)):
        for second in range(first, len(CHUNKED_WIRE)):
            chunked = ChunkedBody()
            for piece in (CHUNKED_WIRE[:first], CHUNKED_WIRE[first:second], CHUNKED_WIRE[second:]):
                assert not chunked.complete
                chunked.feed(piece)
            assert chunked.complete
            assert chunked.body == CHUNKED_BODY
            assert chunked.rest == b""


def test_bytes_after_the_last_chunk_are_kept_apart():
    chunked = ChunkedBody()
    chunked.feed(CHUNKED_WIRE + b"HTTP/1.1 200 OK")
    assert (chunked.body, chunked.rest) == (CHUNKED_BODY, b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "wire",
    [
        b"xyz\r\n",
        b"\r\n",
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5\r\nhelloXY",
        b"%x\r\n" % (CHUNK_BYTES_MAX + 1),
        b"1" * 300,
    ],
)
def test_wrong_chunk_framing_is_refused_not_guessed(wire):
    with pytest.raises(ProtocolError):
        ChunkedBody().feed(wire)


# --- responses

LENGTH_WIRE = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED_RESPONSE_WIRE = b"HTTP/1.1 429 No\r\nTransfer-Encoding: Chunked\r\n\r\n" + CHUNKED_WIRE


@pytest.mark.parametrize(
    ("wire", "status", "body"), [(LENGTH_WIRE, 200, b"hello"), (CHUNKED_RESPONSE_WIRE, 429, CHUNKED_BODY)]
)
def test_a_response_reads_the_same_however_its_bytes_are_split(wire, status, body):
    for split in range(1, len(wire)):
        response = Response()
        response.feed(wire[:split])
        assert not response.complete
        response.feed(wire[split:])
        assert response.complete
        assert response.keep_alive
        assert (response.status, response.body) == (status, body)


@pytest.mark.parametrize("wire", [LENGTH_WIRE, CHUNKED_RESPONSE_WIRE])
def test_a_connection_that_ends_inside_a_response_is_an_error(wire):
    for cut in range(len(wire)):
        response = Response()
        response.feed(wire[:cut])
        with pytest.raises(ProtocolError):
            response.feed_eof()


def test_a_response_without_length_ends_with_its_connection():
    response = Response()
    response.feed(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert not response.complete
    response.feed_eof()
    assert (response.complete, response.keep_alive, response.body) == (True, False, b"hello")


def test_connection_close_ends_keep_alive():
    response = Response()
    response.feed(LENGTH_WIRE.replace(b"Content-Type: a/b", b"Connection: close"))
    assert (response.complete, response.keep_alive) == (True, False)


@pytest.mark.parametrize("wire", [LENGTH_WIRE + b"x", CHUNKED_RESPONSE_WIRE + b"x", b"SSH-2.0-OpenSSH\r\n\r\n"])
def test_bytes_nobody_asked_for_are_an_error(wire):
    with pytest.raises(ProtocolError):
        Response().feed(wire)


# --- the upstream


def test_the_upstream_takes_bodies_with_a_length_and_chunked_ones_alike():
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x"
    plain = head + b"\r\nContent-Length: 16\r\n\r\n" + CHUNKED_BODY
    chunked = head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED_WIRE
    for wire in (plain, chunked):
        for cut in range(len(wire)):
            assert upstream.whole_request(wire[:cut]) is None
        request = upstream.whole_request(wire)
        assert request is not None
        assert request[1] == CHUNKED_BODY


def test_the_answers_are_of_the_sizes_that_the_documentation_states():
    events = answer.stream_events()
    assert len(answer.tokens()) == 200
    assert len(events) == 203  # role, tokens, finish, [DONE]
    assert 320 < len(answer.completion()) < 345
    assert 34_000 < sum(map(len, events)) < 37_000
    assert answer.text_of(b"".join(events), streaming=True) == "".join(answer.tokens())
    assert answer.text_of(answer.completion(), streaming=False) == answer.COMPLETION_TEXT


# --- CPU time


def test_cpu_time_covers_children_and_threads_of_the_process():
    burn = "import threading,time\ndef f():\n while time.thread_time() < 0.2: pass\nthreading.Thread(target=f).start(); f()"
    program = f"import subprocess,sys,time\n{burn}\nsubprocess.Popen([sys.executable, '-c', {burn + chr(10) + 'time.sleep(60)'!r}])\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        before = read_cpu(process.pid)
        deadline_s = time.monotonic() + 10
        # Two threads that have ended are gone from /proc; the two main threads burnt 0.2 s each.
        while spent_s(before, after := read_cpu(process.pid)) < 0.4 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert 0.4 <= spent_s(before, after) < 2
        assert len({pid for pid, _ in after.run_ns}) == 2
        assert resident_mib(process.pid) > 8
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_thread_that_ended_between_two_readings_is_reported():
    before, after = CpuReading(run_ns={(1, 1): 5, (1, 2): 7}), CpuReading(run_ns={(1, 1): 9, (1, 3): 2})
    assert spent_s(before, after) == 6e-9
    assert threads_lost(before, after) == 1


# --- the report


def sample(peer, round_number, *, cpu_us=None, p50=1.0, scenario="json c=16", errors=0):
    return Sample(
        peer=peer, scenario=scenario, round=round_number, requests=10, errors=errors, first_error="", rate_per_s=1.0,
        latency_p50_ms=p50, latency_p99_ms=2 * p50, first_text_p50_ms=None, cpu_us=cpu_us, resident_mib=30.0,
        threads_lost=0,
    )  # fmt: skip


def test_ratios_are_taken_within_a_round_before_the_median():
    # The machine was twice as slow in round 2, for both: the ratio does not see it.
    samples = [sample("floor", 1, cpu_us=100), sample("floor", 2, cpu_us=200), sample("floor", 3, cpu_us=100)]
    samples += [sample("gateway", 1, cpu_us=150), sample("gateway", 2, cpu_us=300), sample("gateway", 3, cpu_us=160)]
    floor, ours = report.rows(samples)
    assert floor.json_ratio is None
    assert ours.json_cpu_us == report.Spread(median=160, low=150, high=300)
    assert ours.json_ratio == report.Spread(median=1.5, low=1.5, high=1.6)


def test_added_latency_is_the_difference_to_direct_in_the_same_round():
    samples = [sample("direct", r, p50=r, scenario="json c=1") for r in (1, 2, 3)]
    samples += [sample("floor", r, cpu_us=1, p50=r + 0.5, scenario="json c=1", errors=1) for r in (1, 2, 3)]
    floor = report.rows(samples)[1]
    assert floor.added_p50_ms == report.Spread(median=0.5, low=0.5, high=0.5)
    assert floor.added_p99_ms == report.Spread(median=1.0, low=1.0, high=1.0)
    assert floor.errors == 3


def test_the_table_replaces_only_what_stands_between_the_markers():
    document = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.filled(document, "| new |")
    assert once == f"before\n{report.BEGIN}\n\n| new |\n\n{report.END}\nafter\n"
    assert report.filled(once, "| new |") == once


@pytest.mark.parametrize("document", ["", report.BEGIN, report.END + report.BEGIN, 2 * (report.BEGIN + report.END)])
def test_a_document_without_one_pair_of_markers_is_refused(document):
    with pytest.raises(ValueError, match="no single pair"):
        report.filled(document, "")


def test_a_percentile_is_a_value_that_occurred():
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, 50), percentile(values, 99), percentile([3.0], 99)] == [50.0, 99.0, 3.0]


# --- the ledger


def test_a_request_is_found_again_at_the_upstream_by_its_number():
    assert upstream.NUMBER.search(http_request(Target(port=1, key=""), streaming=False, numbered=True).encode())
    assert upstream.NUMBER.search(NUMBER.replace(b"00000000", b"00000017"))[1] == b"00000017"
    assert not upstream.NUMBER.search(http_request(Target(port=1, key=""), streaming=False).encode())


def test_the_way_to_the_upstream_is_timed_from_this_phases_sending_to_this_phases_arrival():
    outcome = Outcome(sent_s={"1": 10.0, "2": 11.0, "3": 12.0})
    arrivals = "1 3.5\n2 4.5\n1 10.25\n2 11.5\n"  # an earlier phase counted from 1 as well; the third never arrived
    assert admissions(outcome, arrivals) == [0.25, 0.5]


def test_what_a_ledger_costs_is_a_quotient_within_a_round():
    samples = [sample("memory", r, cpu_us=100 * r) for r in (1, 2, 3)]
    samples += [sample("SQLite", r, cpu_us=103 * r) for r in (1, 2, 3)]
    taken = {("memory", "json c=16"): 0.0, ("SQLite", "json c=16"): 0.25}
    alone = ledger.Grants(store="SQLite", holders=1, accounts=1, grants_per_s=1, p50_ms=1, p99_ms=1, cpu_us=103)
    *_, first, second = ledger.gateways_table(samples, taken, [alone]).splitlines()
    assert first.startswith("| json c=16 | memory | – | 200 (100–300) | – | – |")
    assert second.startswith("| json c=16 | SQLite | 0.250 | 206 (103–309) | 12.5% | 1.030 |")


def test_a_store_is_asked_by_every_number_of_holders_for_one_account_and_for_many(tmp_path):
    command = module("gateway.ledger.bench", f"sqlite:{tmp_path}/ledger.db", "--seconds", "0.05")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    grants = [ledger.Grants(store="SQLite", **json.loads(line)) for line in done.stdout.splitlines()]
    assert [(one.holders, one.accounts) for one in grants] == [(n, a) for n in (1, 16, 64) for a in (1, 64)]
    assert all(one.grants_per_s > 10 and 0 < one.p50_ms <= one.p99_ms for one in grants)
    assert ledger.stores_table(grants).count("| SQLite |") == 6


def test_a_very_small_run_of_the_ledgers_bench_fills_its_place_in_the_document(tmp_path):
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{ledger.BEGIN}\n{ledger.END}\nafter\n")
    command = module("loadtests.bench.ledger", "--rounds", "1", "--requests", "16", "--seconds", "0.2")
    done = subprocess.run(
        [*command, "--markdown", str(document)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    (worst,) = [line.split(" | ") for line in lines if line.startswith("| json c=1 | SQLite, small budget")]
    assert 0.9 < float(worst[2]) < 1.1, "a grant for every request"


# --- the audit log


def test_what_an_audit_log_costs_is_a_quotient_within_a_round():
    samples = [sample(audit.NO_LOG, r, cpu_us=80 * r, scenario="burst stream c=4") for r in (1, 2, 3)]
    samples += [sample(audit.BARE, r, cpu_us=100 * r, scenario="burst stream c=4") for r in (1, 2, 3)]
    samples += [sample(audit.FULL, r, cpu_us=120 * r, scenario="burst stream c=4") for r in (1, 2, 3)]
    lines = audit.gateways_table(samples).splitlines()
    assert lines[2].startswith("| burst stream c=4 | none | 160 (80–240) | – | 0.800 |")
    assert lines[5].startswith("| burst stream c=4 | two auditors | 240 (120–360) | 1.500 | 1.200 |")


def test_a_very_small_run_of_the_audit_logs_bench_fills_its_place_in_the_document(tmp_path):
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{audit.BEGIN}\n{audit.END}\nafter\n")
    command = module("loadtests.bench.audit", "--rounds", "1", "--requests", "16", "--seconds", "0.2")
    done = subprocess.run(
        [*command, "--markdown", str(document)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert sum(line.startswith(("| burst stream c=4 |", "| paced stream c=32 |")) for line in lines) == 8
    appended = [line.split(" | ") for line in lines if line.startswith(("| 0 | ", "| 2 | "))]
    assert [(row[0], row[1]) for row in appended] == [(f"| {n}", str(a)) for n in (0, 2) for a in (1, 16, 64)]
    assert all(float(durable) >= float(signed) > 100 for _, _, durable, signed, *_ in appended)
    assert [line.split(" | ")[0] for line in lines if line.startswith(("| no |", "| yes |"))] == ["| no", "| yes"]


# --- the whole


def test_the_gateway_gets_a_policy_with_both_upstreams_and_the_digest_of_the_key(tmp_path):
    peer = gateway(Site(directory=tmp_path, burst_port=1001, paced_port=1002, key="abc"))
    (policy,) = (yaml.safe_load(text) for text in peer.files.values())
    assert policy["models"][peer.burst.model]["upstream"] == "http://127.0.0.1:1001"
    assert policy["models"][peer.paced.model]["upstream"] == "http://127.0.0.1:1002"
    assert policy["tenants"]["bench"]["models"] == [peer.burst.model, peer.paced.model]
    # FIPS 180-2, appendix B.1: SHA-256 of "abc"
    digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert policy["tenants"]["bench"]["keys"] == [digest]
    assert policy["listen"] == f"127.0.0.1:{peer.burst.port}"
    assert peer.ready_url == f"http://{policy['admin']}/readyz"


def test_a_peer_that_does_not_start_is_named_with_its_last_words(tmp_path):
    target = Target(port=1, key="")
    peer = Peer(
        name="broken", burst=target, paced=target, argv=(sys.executable, "-c", "raise SystemExit('no such policy')"),
        ready_url=f"http://127.0.0.1:{free_port()}/readyz",
    )  # fmt: skip
    last_words = r"broken ended with exit status 1(.|\n)*no such policy"
    with pytest.raises(PeerError, match=last_words), running(peer, directory=tmp_path):
        pass


def test_a_quick_run_gives_sane_numbers_and_no_errors(tmp_path):
    results, document = tmp_path / "bench.json", tmp_path / "benchmarks.md"
    document.write_text(f"{report.BEGIN}{report.END}")
    command = module("loadtests.bench", "--quick", "--peers", "direct,floor", "--json", str(results))
    done = subprocess.run(
        [*command, "--markdown", str(document)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr

    direct, floor = json.loads(results.read_text())["summary"]
    assert (direct["peer"], direct["errors"], direct["json_cpu_us"]) == ("direct", 0, None)
    assert (floor["peer"], floor["errors"]) == ("floor", 0)
    assert 20 < floor["json_cpu_us"]["median"] < 5_000
    assert 50 < floor["stream_cpu_us"]["median"] < 50_000
    assert 1 < floor["chunk_cpu_us"]["median"] < 1_000
    assert floor["resident_mib"]["median"] > 10
    assert floor["burst_first_text_ms"]["median"] > direct["burst_first_text_ms"]["median"] > 0
    assert "floor" in done.stdout
    assert "| floor |" in document.read_text()


def test_an_interrupted_run_stops_everything_it_started(tmp_path):
    bench = subprocess.Popen(
        module("loadtests.bench", "--peers", "direct,floor"), cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    deadline_s = time.monotonic() + 20
    while (
        len(children := {pid for pid, _ in read_cpu(bench.pid).run_ns} - {bench.pid}) < 4
    ):  # 2 upstreams, floor, client
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    bench.send_signal(signal.SIGINT)
    bench.communicate(timeout=20)
    assert bench.returncode == 130
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.iterdir()) == []
