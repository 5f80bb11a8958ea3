"""The zstd code is a prefix code of whole texts: it decodes, it ends by itself, and its dictionary is pinned."""

import hashlib
import random
import threading
import time
from fractions import Fraction
from itertools import product

import pytest
from backports.zstd import ZstdCompressor, ZstdDecompressor, ZstdDict, train_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.meters.zstd import MAGIC_BYTES, ZstdMeter, shipped_dictionary

DIGEST = "cd6e86359251d3b149a6825426ec383be933f5ebb78a720b09a59cc654e0ac2c"
ZSTD_MAGIC = bytes.fromhex("28b52ffd")
METER = ZstdMeter()
PROSE = b"The function returns a new list that contains the items of the original list, in the same order. "


def frame(text: bytes, meter: ZstdMeter = METER) -> bytes:
    meter.text_bits(b"")  # makes this thread's compressor
    return meter._own.compressor.compress(text, mode=ZstdCompressor.FLUSH_FRAME)


def unpack(data: bytes) -> tuple[bytes, bytes]:
    """The text of the first frame and what follows it, read by a decoder that knows only the shipped dictionary."""
    decoder = ZstdDecompressor(zstd_dict=ZstdDict(shipped_dictionary()))
    text = decoder.decompress(data)
    assert decoder.eof
    return text, decoder.unused_data


texts = st.binary(max_size=300) | st.text(max_size=200).map(str.encode) | st.integers(0, 40).map(lambda n: PROSE * n)


@settings(max_examples=150)
@given(texts, st.binary(max_size=40))
def test_a_frame_ends_by_itself_whatever_follows_it(text, following):
    assert unpack(frame(text) + following) == (text, following)


@settings(max_examples=60)
@given(texts, texts)
def test_frames_of_one_compressor_stand_each_for_itself(first, second):
    assert METER.text_bits(first) == ZstdMeter().text_bits(first)
    assert unpack(frame(second) + frame(first))[0] == second


@settings(max_examples=100)
@given(texts)
def test_the_charge_is_the_frame_less_its_constant_magic(text):
    data = frame(text)
    assert data.startswith(ZSTD_MAGIC)
    assert METER.text_bits(text) == 8 * (len(data) - MAGIC_BYTES) > 0


def test_all_short_texts_together_satisfy_kraft():
    alphabet = [b"a", b"e", b" ", b"\x00", b"\xff"]
    total = sum(
        Fraction(1, 2 ** METER.text_bits(b"".join(letters)))
        for size in range(5)
        for letters in product(alphabet, repeat=size)
    )
    assert total <= 1


def test_the_charge_of_prose_is_well_below_raw():
    assert METER.text_bits(PROSE * 6) < 4 * len(PROSE) * 6


def test_the_dictionary_is_the_one_that_was_published():
    assert METER.digest == hashlib.sha256(shipped_dictionary()).hexdigest() == DIGEST
    assert len(shipped_dictionary()) < 40 * 1024


def test_another_dictionary_is_another_code():
    other = ZstdMeter(train_dict([b"%d: " % n + PROSE for n in range(200)], 2048).dict_content)
    assert other.digest != METER.digest
    assert other.text_bits(PROSE) < METER.text_bits(PROSE)


def test_the_same_text_costs_the_same_from_any_thread():
    expected = [METER.text_bits(PROSE * n) for n in range(20)]
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append([METER.text_bits(PROSE * n) for n in range(20)])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_a_short_text_does_not_wait_for_a_long_one():
    """Short texts are settled on the event loop: behind the lock of a long one, every stream would stand still."""
    meter = ZstdMeter()
    noise = random.Random(1)
    text = b" ".join(b"w%d" % noise.randrange(5000) for _ in range(500_000))
    long = threading.Thread(target=meter.text_bits, args=(text,))
    long.start()
    time.sleep(0.02)
    meter.text_bits(b"short")
    still_busy = long.is_alive()
    long.join()
    assert still_busy


@pytest.mark.parametrize("text", [b"", b"x", bytes(1 << 20), PROSE * 5000], ids=["empty", "one", "zeros", "long"])
def test_texts_of_every_size_have_a_price(text):
    assert unpack(frame(text)) == (text, b"")
    assert METER.text_bits(text) > 0
