"""Load: what is said and heard, what a crowd counts, harms of the fault proxy, and a short run of every program."""

import asyncio
import json
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.bench import streams
from loadtests.bench.peer import free_port, module
from loadtests.bench.upstream import STREAM_HEAD, chunk
from loadtests.load.asker import Asker, End
from loadtests.load.crowd import BIN_S, BINS, Histogram
from loadtests.load.fault_proxy import FaultProxy, Harm, Timing
from loadtests.load.script import NUMBERS, Kind, Script, completion, events, heard, script_of
from loadtests.load.shapes import SHAPES, users_at
from loadtests.load.site import Place, parsed
from loadtests.load.trend import trend
from loadtests.load.verdict import lag_p99_ms, same_bytes

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = st.builds(
    Script,
    number=st.integers(0, NUMBERS - 1),
    kind=st.sampled_from(Kind),
    pieces=st.integers(0, 300),
    pace_ms=st.integers(0, 60_000),
)


# --- what is said


@given(SCRIPTS)
def test_a_request_carries_its_script_and_the_answer_is_heard_as_it_was_said(script):
    assert script_of(script.body("m")) == script
    said = completion(script) if script.kind is Kind.JSON else b"".join(events(script))
    assert heard(said, script.kind) == "".join(script.spoken())


@given(SCRIPTS.filter(lambda script: script.pieces > 1), st.randoms())
def test_no_piece_of_an_answer_can_be_lost_doubled_or_moved_unseen(script, chance):
    pieces = script.spoken()
    at = chance.randrange(len(pieces) - 1)
    whole = "".join(pieces)
    assert "".join(pieces[:at] + pieces[at + 1 :]) != whole
    assert "".join(pieces[: at + 1] + pieces[at:]) != whole
    if pieces[at] != pieces[at + 1]:
        assert "".join([*pieces[:at], pieces[at + 1], pieces[at], *pieces[at + 2 :]]) != whole


def test_two_questions_never_have_the_same_answer():
    assert (
        Script(number=1, kind=Kind.STREAM, pieces=3, pace_ms=0).spoken()
        != Script(number=2, kind=Kind.STREAM, pieces=3, pace_ms=0).spoken()
    )


# --- what is judged

STREAM = Script(number=7, kind=Kind.STREAM, pieces=5, pace_ms=0)
WIRE = [chunk(event) for event in events(STREAM)]
REFUSAL = b'{"error":{"code":"too_many_streams"}}'


@pytest.mark.parametrize(
    ("wire", "end"),
    [
        (STREAM_HEAD + b"".join(WIRE) + b"0\r\n\r\n", End.GOOD),
        (STREAM_HEAD + b"".join(WIRE[:3] + WIRE[4:]) + b"0\r\n\r\n", End.WRONG),
        (STREAM_HEAD + b"".join(WIRE[:3] + WIRE[2:]) + b"0\r\n\r\n", End.WRONG),
        (STREAM_HEAD + b"".join(WIRE[:4]) + b"0\r\n\r\n", End.WRONG),  # a clean end of half an answer
        (STREAM_HEAD + b"".join(WIRE[:4]), End.BROKEN),
        (STREAM_HEAD + b"".join(WIRE[:2] + WIRE[3:5]), End.WRONG),  # broken, but not the beginning of what was said
        (b"", End.LOST),
        (b"HTTP/1.1 429 No\r\nContent-Length: %d\r\n\r\n%s" % (len(REFUSAL), REFUSAL), End.REFUSED),
        (b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n", End.FAILED),
    ],
)
async def test_an_exchange_is_judged_by_every_byte_of_it(wire, end):
    async def answer(reader, writer):
        await reader.readuntil(b"}")
        writer.write(wire)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        asker = Asker(Place(port=port, admin_port=0, backend_port=0, keys=()))
        exchange = await asker.ask(STREAM, key="k")
        asker.close()
    assert exchange.end is end
    assert exchange.text_bytes <= len("".join(STREAM.spoken()).encode()) + 10
    if end is End.REFUSED:
        assert exchange.reason == "too_many_streams"


@pytest.mark.parametrize(("released", "ok"), [(120, True), (119, False), (121, False)])
def test_counts_that_differ_by_one_byte_are_noticed(released, ok, monkeypatch):
    said = {"repeated": 0, "whole_text_bytes": 120, "whole_argument_bytes": 30}
    monkeypatch.setattr(Place, "said", lambda _: said)
    page = f'weir_released_text_bytes_total{{model="m",tenant="a"}} 100.0\nweir_released_text_bytes_total{{model="m",tenant="b"}} {released - 100}\n'
    place = Place(port=0, admin_port=0, backend_port=0, keys=())
    _, words, arguments = same_bytes(place, parsed(page), text_bytes=120, argument_bytes=30)
    assert (words.ok, arguments.ok) == (ok, True)


# --- what is counted


def test_a_leak_is_a_rise_and_noise_is_none():
    noise = random.Random(1)
    flat = [(float(at), 80 + noise.gauss(0, 2)) for at in range(180)]
    leaking = [(at, value + at * 0.05) for at, value in flat]
    jumping = [(at, value + (40 if int(at) % 9 == 0 else 0)) for at, value in flat]  # outliers are no leak
    assert trend(flat, unit="MiB", part=0.03, least=4).flat
    assert trend(jumping, unit="MiB", part=0.03, least=4).flat
    leak = trend(leaking, unit="MiB", part=0.03, least=4)
    assert not leak.flat
    assert 5 < leak.rise < 8  # 0.05 a second over the 134 after the warm-up


def test_what_grows_only_while_it_warms_up_is_flat():
    points = [(float(at), min(60 + at, 90.0)) for at in range(180)]
    assert trend(points, unit="MiB", part=0.03, least=1).rise == 0


def test_a_histogram_knows_its_percentiles_and_its_worst():
    times = Histogram()
    for value_ms in range(1, 101):
        times.add(value_ms / 1e3)
    times.add(1000.0)
    assert times.percentile_ms(50) == pytest.approx(51.5, abs=0.6)
    assert times.percentile_ms(100) == (BINS + 1) * BIN_S * 1e3
    assert times.worst_s == 1000.0
    assert Histogram().percentile_ms(99) == 0


def test_the_lag_of_a_run_is_that_of_its_own_ticks():
    name = "weir_tick_lag_seconds_bucket"
    before = parsed(f'{name}{{le="0.02"}} 10.0\n{name}{{le="0.05"}} 500.0\n{name}{{le="+Inf"}} 500.0\n')
    after = parsed(f'{name}{{le="0.02"}} 990.0\n{name}{{le="0.05"}} 1500.0\n{name}{{le="+Inf"}} 1500.0\n')
    assert lag_p99_ms(before, after) == 50.0
    assert lag_p99_ms(parsed(""), before) == 50.0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_has_always_somebody_and_at_some_time_everybody(shape):
    users = [users_at(shape, at_s, seconds=100, users=30) for at_s in range(101)]
    assert min(users) >= 1
    assert max(users) == 30
    assert (min(users) == 30) == (shape == "steady")


# --- the fault proxy


@pytest.mark.parametrize("harm", Harm)
async def test_a_harm_does_to_an_answer_what_it_says(harm):
    body = b"x" * 8000

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    timing = Timing(late_s=0.2, too_late_s=0.5, stall_s=0.5)
    proxy = FaultProxy(upstream_port=server.sockets[0].getsockname()[1], timing=timing, seed=3)
    proxy.weights = {harm: 1.0}
    port = free_port()
    await proxy.listen(port)
    loop = asyncio.get_running_loop()
    received, reset, first_s, ended = b"", False, None, False
    async with server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\n\r\n")
        sent_s = loop.time()
        try:
            async with asyncio.timeout(0.35):
                while piece := await reader.read(65536):
                    first_s = first_s or loop.time() - sent_s
                    received += piece
                ended = True
        except ConnectionResetError:
            reset = True
        except TimeoutError:
            pass
        writer.close()
        proxy.close()
    assert proxy.done == {harm: 1}
    whole = {Harm.NONE, Harm.LATE}
    assert (received == body) == (harm in whole)
    assert reset == (harm is Harm.RESET)
    assert ended == (harm is Harm.HANG_UP)
    assert (received == b"") == (harm is Harm.TOO_LATE) or harm is Harm.RESET  # a reset may overtake what came before
    assert any(byte >= 0x80 for byte in received) == (harm is Harm.GARBAGE)
    assert (first_s or 0) >= 0.2 or harm is not Harm.LATE


# --- short runs of the programs


def run(tmp_path, name, *words, seconds=120):
    file = tmp_path / "results.json"
    command = module(name, *words, "--json", str(file))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(file.read_text())
    assert results["checks"], done.stdout
    return results


def found(results, name):
    (check,) = [check for check in results["checks"] if check["name"] == name]
    return check["found"]


def test_locusts_users_hear_what_the_upstream_said_and_the_gateway_counted(tmp_path):
    results = run(tmp_path, "loadtests.load", "--users", "12", "--seconds", "5", "--tenants", "6", "--shape", "ramp")
    said, released, heard_bytes = found(results, "bytes said = released = heard").split(" = ")
    assert said == released == heard_bytes != "0"
    rows = results["rows"]
    assert {"POST json", "TTFT stream", "total stream", "POST stream: head"} <= rows.keys()
    assert 2 <= int(rows["tenants"]) <= 6


def test_locust_counts_refusals_apart_from_failures(tmp_path):
    words = ("--users", "12", "--seconds", "4", "--tenants", "1", "--streams-max", "3", "--refused-max", "0.95")
    results = run(tmp_path, "loadtests.load", *words)
    assert "refused 429 too_many_streams" in results["rows"]
    assert found(results, "few failures").startswith("0 of ")
    assert not found(results, "few refusals").startswith("0 of ")


def test_a_threshold_that_is_not_kept_is_the_exit_status(tmp_path):
    words = ("--users", "2", "--seconds", "2", "--tenants", "1", "--ttft-ms", "0.001")
    command = module("loadtests.load", *words)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "| TTFT in time |" in done.stdout
    assert done.stdout.count("**NO**") == 1


def test_a_short_soak_loses_and_doubles_nothing(tmp_path):
    # Memory cannot be flat in its first seconds: that is what half an hour is for.
    results = run(tmp_path, "loadtests.load.soak", "--seconds", "6", "--rate", "15", "--memory-mib", "64")
    assert "tick lag ≤ 20 ms" in results["rows"]
    assert found(results, "descriptors are flat")


def test_a_short_overload_refuses_and_admits(tmp_path):
    # Times are for a machine that does nothing else; here the kinds of ends and the counts are what is held.
    words = ("--seconds", "3", "--rounds", "1", "--capacity", "16", "--refusal-ms", "5000", "--gaps", "100")
    results = run(tmp_path, "loadtests.load.overload", *words)
    assert found(results, "refuses, and says why") == "refused: too_many_streams"


def test_a_short_run_of_backend_faults_leaves_nothing_uncharged_or_open(tmp_path):
    results = run(tmp_path, "loadtests.load.faults", "--seconds", "5")
    assert float(found(results, "nothing heard was uncharged").split()[0]) >= 1


def test_open_streams_are_measured_beside_the_floor(tmp_path):
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{streams.BEGIN}\n{streams.END}\nafter\n")
    few = ("--rounds", "1", "--streams", "30", "--pace-ms", "20", "--seconds", "1", "--peers", "floor,gateway")
    command = module("loadtests.bench.streams", *few, "--markdown", str(document))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [
        line.split(" | ") for line in document.read_text().splitlines() if line.startswith(("| floor", "| gateway"))
    ]
    assert [(row[0], row[1]) for row in rows] == [("| floor", "30"), ("| gateway", "30")]
    assert all(row[-1] == "0 |" for row in rows), "every stream came"
    assert rows[1][6].startswith("≤ ")
