"""The thefts: encoders against their decoders, the arithmetic of what counts, the plain proxy, and a small run of the whole."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.bench.cpu import tree
from loadtests.bench.peer import free_port
from loadtests.exfiltration import backend, honest, passthrough, report
from loadtests.exfiltration.answer import calls_of, finish_of, text_of
from loadtests.exfiltration.backend import Ask, Wire
from loadtests.exfiltration.channel import STREAM, WHOLE, Channel, Residual, Scene
from loadtests.exfiltration.charges import Charges
from loadtests.exfiltration.client import Exit, exchange
from loadtests.exfiltration.hiding import cased, from_cased, from_marked, from_order, marked, order
from loadtests.exfiltration.information import (
    binary_entropy,
    bits_of,
    bytes_of,
    coin_bits,
    information_bits,
    prefix_length,
)
from loadtests.exfiltration.range_coder import hide, reveal
from loadtests.exfiltration.response import Response
from loadtests.exfiltration.roster import CHANNELS
from loadtests.exfiltration.text import from_groups, in_groups
from loadtests.exfiltration.trained import trained_bits
from loadtests.exfiltration.verdict import Row, Verdict, judge, price
from loadtests.exfiltration.word_model import WordModel, documents_model

ROOT = Path(__file__).resolve().parents[2]
CHEAP = "cookies,key-order,finish-reason,text-base64"
# What needs seconds, a gateway or a budget of its own.
SPECIAL = {
    "race-for-the-last-bit",
    "many-tenants",
    "abort-and-retry",
    "silence",
    "crash",
    "load",
    "text-fluent-smollm2",
}


# --- what counts as information


def test_a_decoder_that_is_always_right_gets_every_bit():
    assert information_bits([(at % 256, at % 256) for at in range(512)], bits=8) == 512 * 8


def test_a_decoder_that_is_always_wrong_knows_as_much():
    assert coin_bits(errors=100, guesses=100) == 100


@given(st.integers(0, 2**32))
def test_guessing_gets_nothing(seed):
    coin = random.Random(seed)
    pairs = [(coin.getrandbits(4), coin.getrandbits(4)) for _ in range(256)]
    assert information_bits(pairs, bits=4) == 0


def test_a_constant_answer_gets_nothing_and_an_erasure_tells_nothing():
    coin = random.Random(1)
    assert information_bits([(coin.getrandbits(8), 0) for _ in range(256)], bits=8) == 0
    assert information_bits([(coin.getrandbits(8), None) for _ in range(256)], bits=8) == 0


def test_a_noisy_decoder_gets_the_capacity_of_its_channel():
    assert coin_bits(errors=11, guesses=100) == pytest.approx(100 * (1 - binary_entropy(0.11)))
    assert binary_entropy(0.11) == pytest.approx(0.4999, abs=1e-4)


def test_too_few_guesses_prove_nothing():
    assert coin_bits(errors=0, guesses=20) == 0
    assert coin_bits(errors=0, guesses=30) == 30


@given(st.binary(max_size=40))
def test_bits_and_bytes_are_two_forms_of_one_thing(data):
    assert bytes_of(bits_of(data)) == data


def test_bits_after_the_first_wrong_one_do_not_count():
    assert prefix_length("abcd", "abxd") == 2
    assert prefix_length("abcd", "ab") == 2


# --- the trained decoder


def answered(body):
    response = Response()
    response.feed(honest.whole(body), 0.0)
    return response


def test_the_trained_decoder_finds_a_bit_that_nobody_told_it_of():
    coin = random.Random(2)
    symbols = [coin.getrandbits(1) for _ in range(256)]
    answers = [(symbol, answered(b'{"created":%d,"x":%d}' % (at, symbol))) for at, symbol in enumerate(symbols)]
    assert trained_bits(answers, bits=1) == 256


def test_the_trained_decoder_does_not_learn_from_ids_and_times():
    coin = random.Random(3)
    answers = []
    for at in range(256):
        symbol = coin.getrandbits(1)
        answers.append((symbol, answered(b'{"id":"chatcmpl-%024x","created":%d}' % (symbol, at))))
    assert trained_bits(answers, bits=1) == 0


# --- hiding places


@given(st.integers(0, 23))
def test_an_order_of_things_is_a_number(symbol):
    assert from_order(order(symbol, "abcd"), "abcd") == symbol


@given(st.integers(0, 255))
def test_case_and_marks_carry_bits(symbol):
    assert from_cased(cased(symbol, "abcdefgh")) == symbol
    text = marked(symbol, 8, text="a b c d e f g h i", zero="\u200b", one="\u200c")
    assert from_marked(text, 8, zero="\u200b", one="\u200c") == symbol
    assert from_marked("a b c d e f g h", 8, zero="\u200b", one="\u200c") is None


@given(st.binary(min_size=1, max_size=60), st.sampled_from([7, 10, 14, 16]))
def test_a_secret_in_groups_of_bits_comes_back_with_its_padding(secret, bits):
    assert from_groups(in_groups(secret, bits), bits)[: 8 * len(secret)] == bits_of(secret)


# --- range coding


@given(st.lists(st.integers(0, 1), min_size=1, max_size=200))
def test_range_coding_gives_the_bits_back_from_skewed_tokens(bits):
    def model(before):
        return ([0, 1, 2], [600, 5, 7]) if len(before) % 2 else ([0, 1], [1, 400])

    tokens = hide(bits, model, tokens_max=100_000)
    assert reveal(tokens, model)[: len(bits)] == bits


def test_range_coded_tokens_follow_the_model():
    secret = bits_of(random.Random(4).randbytes(2000))
    tokens = hide(secret, lambda _: ([0, 1], [3, 1]), tokens_max=40_000)
    assert tokens.count(0) / len(tokens) == pytest.approx(0.75, abs=0.01)
    assert len(tokens) == pytest.approx(len(secret) / binary_entropy(0.25), rel=0.02)


def test_a_model_with_too_little_to_say_is_an_error_and_not_a_loop():
    with pytest.raises(ValueError, match="need more than 10 tokens"):
        hide([0, 1] * 20, lambda _: ([0, 1], [60_000, 1]), tokens_max=10)


def test_the_word_model_reads_back_what_it_wrote():
    model = documents_model()
    secret = bits_of(random.Random(5).randbytes(40))
    text = model.text(hide(secret, model, tokens_max=2000))
    assert prefix_length(secret, reveal(model.tokens(text), model)) == len(secret)
    assert set(text.split()) <= set(model.words)


def test_a_word_model_falls_back_to_shorter_contexts():
    model = WordModel("a b a c a d e")
    assert model((0,)) == ([1, 2, 3], [1, 1, 1])  # after "a" came b, c and d
    assert sorted(model((4,))[0]) == [0, 1, 2, 3, 4]  # after "e" came nothing


# --- responses

CHUNKED = (
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 Fine\r\nx-a: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;n=v\r\nhello\r\n1\r\n!\r\n0\r\nX-T: t\r\n\r\nmore"
)


def test_a_response_keeps_everything_however_its_bytes_are_split():
    for split in range(len(CHUNKED)):
        response = Response()
        response.feed(CHUNKED[:split], 1.0)
        response.feed(CHUNKED[split:], 2.0)
        assert (response.status, response.body, response.complete) == (200, b"hello!", True)
        assert response.interim == [b"HTTP/1.1 103 Early Hints\r\nLink: x"]
        assert [chunk.size_line for chunk in response.chunks] == [b"5;n=v", b"1"]
        assert response.headers[0] == (b"x-a", b" 1")
        assert (response.trailer, response.surplus) == (b"X-T: t", b"more")


def test_streamed_text_and_calls_are_read_across_chunks():
    events = b"".join(
        [honest.event({"content": "a"}), honest.event({"content": "b"}), *honest.closing(finish="length")]
    )
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}
    events += honest.event({"tool_calls": [call]})
    response = Response()
    response.feed(honest.stream([events[:50], events[50:]]), 0.0)
    assert (text_of(response), finish_of(response)) == ("ab", "length")
    assert calls_of(response) == [{"id": "c", "name": "f", "arguments": "{"}]


# --- the plain proxy


async def through_proxy(act, request=WHOLE, **options):
    async with backend.running(free_port()) as server:
        server.act = act
        port = free_port()
        async with passthrough.running(port=port, upstream_port=server.port):
            exit_ = Exit(port=port, key="k")
            return await exchange(exit_, request.request(exit_, 7), **options)


async def test_the_plain_proxy_changes_no_byte():
    async def act(ask: Ask, wire: Wire) -> None:
        assert ask.number == 7
        await wire.send(CHUNKED)
        await wire.close()

    response = await through_proxy(act, linger_s=1.0)
    assert (response.interim, response.body, response.surplus) == ([CHUNKED[:33]], b"hello!", b"more")
    assert response.end == "closed"


async def test_the_plain_proxy_keeps_moments():
    async def act(_: Ask, wire: Wire) -> None:
        await wire.send(honest.STREAM_HEAD + honest.chunk(b"a"))
        await asyncio.sleep(0.1)
        await wire.send(honest.chunk(b"b") + honest.LAST_CHUNK)

    first, second = (await through_proxy(act, STREAM)).chunks
    assert second.at_s - first.at_s == pytest.approx(0.1, abs=0.05)


async def test_the_plain_proxy_passes_resets_and_refusals_on():
    async def act(_: Ask, wire: Wire) -> None:
        await wire.send(honest.STREAM_HEAD)
        await wire.reset()

    assert (await through_proxy(act)).end in ("reset", "closed")
    port = free_port()
    async with passthrough.running(port=port, upstream_port=free_port()):
        exit_ = Exit(port=port, key="k")
        assert (await exchange(exit_, WHOLE.request(exit_, 0))).end in ("reset", "closed")


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_the_plain_proxy_leaves_no_connection_behind():
    async def act(_: Ask, wire: Wire) -> None:
        await wire.send(honest.whole())

    await through_proxy(act)
    await asyncio.sleep(0.05)
    before = open_files()
    for _ in range(5):
        await through_proxy(act)
    await asyncio.sleep(0.05)
    assert open_files() <= before


# --- every channel


# The others take seconds each; the suite's own run says BLUNT of a channel that stops stealing.
QUICK = sorted(
    name
    for name, channel in CHANNELS.items()
    if name not in {*SPECIAL, "first-byte-time", "duration", "gaps", "gaps-below-a-tick"}
    and channel.residual is not Residual.BOUNDED
)


@pytest.mark.parametrize("name", QUICK)
async def test_each_quick_channel_steals_through_the_plain_proxy(name, tmp_path):
    channel = CHANNELS[name]
    async with backend.running(free_port()) as server:
        port = free_port()
        async with passthrough.running(port=port, upstream_port=server.port):
            scene = Scene(
                exit=Exit(port=port, key="k"), backend=server, rng=random.Random(6), quick=True, directory=tmp_path,
                through_gateway=False,
            )  # fmt: skip
            loot = await channel.steal(scene)
    share = 0.5 if channel.residual is Residual.TICKS else 0.9
    assert loot.decoded_bits >= share * loot.sent_bits > 0


def test_every_channel_has_a_name_that_fits_a_command_line_and_says_what_it_does():
    for name, channel in CHANNELS.items():
        assert name == channel.name
        assert name.replace("-", "").isalnum()
        assert channel.what


def test_no_two_channels_share_a_name():
    from loadtests.exfiltration.roster import MODULES

    assert len(CHANNELS) == sum(len(module.CHANNELS) for module in MODULES)


# --- verdicts


def channel_of(residual):
    return Channel(name="x", what="y", residual=residual, steal=None)


def verdict_of(residual, **figures):
    usual = {"sent": 100, "stolen": 100, "sent_gateway": 100, "decoded": 50, "charged": 60, "seconds": 1.0, "fault": ""}
    return judge(channel_of(residual), **(usual | figures))[0]


def test_a_row_passes_only_if_it_steals_plainly_and_is_charged_for_what_it_steals_from_the_gateway():
    assert verdict_of(Residual.PRICED) is Verdict.PASS
    assert verdict_of(Residual.PRICED, decoded=61) is Verdict.FAIL
    assert verdict_of(Residual.PRICED, stolen=89) is Verdict.BLUNT
    assert verdict_of(Residual.NOTHING) is Verdict.FAIL
    assert verdict_of(Residual.NOTHING, decoded=0) is Verdict.PASS
    assert verdict_of(Residual.TICKS, stolen=51) is Verdict.PASS
    assert verdict_of(Residual.TICKS, stolen=49) is Verdict.BLUNT
    assert verdict_of(Residual.BOUNDED, fault="memory") is Verdict.FAIL


def test_timing_is_held_against_the_charge_without_the_text():
    charges = Charges(raw_bits=1000, refunded_bits=300, text_bytes=100, used_bits=700)
    assert price(channel_of(Residual.TICKS), charges) == 200
    assert price(channel_of(Residual.PRICED), charges) == 700


def row(**figures):
    usual = {
        "channel": "x", "what": "a|b", "residual": "priced", "sent_bits": 10.0, "responses": 1, "stolen_bits": 10.0,
        "stolen_note": "", "decoded_bits": 5.0, "charged_bits": 8, "seconds": 2.0, "note": "", "verdict": Verdict.PASS,
        "why": "",
    }  # fmt: skip
    return Row(**(usual | figures))


def test_the_table_replaces_only_what_stands_between_the_markers():
    document = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.filled(document, "| new |")
    assert once == f"before\n{report.BEGIN}\n\n| new |\n\n{report.END}\nafter\n"
    with pytest.raises(ValueError, match="no single pair"):
        report.filled("", "")


def test_rows_are_told_apart_by_what_they_promise():
    assert report.cells(row())[2:5] == ["10 (100%)", "5", "8"]
    assert report.cells(row(residual="ticks", decoded_bits=10.0))[3:5] == [
        "10 (5.0 bit/s)",
        "8 in ticks; uncharged 1.00 bit/s",
    ]
    assert report.cells(row(verdict=Verdict.FAIL, why="so"))[5] == "FAIL: so"
    assert "| a\\|b |" in report.markdown([row()], "")


# --- the whole


def test_a_quick_run_of_four_channels_passes_and_fills_the_files(tmp_path):
    results, document = tmp_path / "attack.json", tmp_path / "attacks.md"
    document.write_text(f"{report.BEGIN}{report.END}")
    command = [sys.executable, "-m", "loadtests.exfiltration", "--quick", "--only", CHEAP, "--json", str(results)]
    done = subprocess.run(
        [*command, "--markdown", str(document)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["channel"]: row for row in json.loads(results.read_text())["rows"]}
    assert set(rows) == set(CHEAP.split(","))
    assert rows["cookies"]["decoded_bits"] == rows["key-order"]["decoded_bits"] == 0
    assert rows["finish-reason"]["decoded_bits"] == 256 < rows["finish-reason"]["charged_bits"]
    assert rows["text-base64"]["decoded_bits"] == rows["text-base64"]["sent_bits"] < rows["text-base64"]["charged_bits"]
    assert all(row["stolen_bits"] == row["sent_bits"] for row in rows.values())
    assert "| `cookies` |" in document.read_text()
    assert "4 PASS" in done.stdout


def test_an_interrupted_run_stops_the_gateway(tmp_path):
    command = [sys.executable, "-m", "loadtests.exfiltration", "--only", "first-byte-time"]
    thief = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True, env={"TMPDIR": str(tmp_path), "PATH": ""}
    )
    deadline_s = time.monotonic() + 20
    while not (started := set(tree(thief.pid)) - {thief.pid}):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    time.sleep(0.5)
    thief.send_signal(signal.SIGINT)
    _, said = thief.communicate(timeout=20)
    assert thief.returncode == 130, said
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--only", "nothing"], ["--markdown", "/nowhere"]])
def test_a_wrong_command_line_is_refused_before_anything_starts(words):
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.exfiltration", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "error:" in done.stderr
