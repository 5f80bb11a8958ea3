"""Every split of the bytes gives the same events; nothing but data comes out."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.sse import EventParser
from policy.canonical import Malformed
from policy.limits import EVENT_BYTES_MAX


def parse(*chunks: bytes) -> list[bytes | str]:
    """What comes out of a fresh parser; a fault is the last thing."""
    parser = EventParser(room_bytes=1 << 40)
    found: list[bytes | str] = []
    try:
        for chunk in chunks:
            found.extend(parser.feed(chunk))
    except Malformed:
        found.append("malformed")
    return found


STREAM = (
    b": hello\r\n\r\ndata: one\n\nevent: x\ndata:two\nid: 7\nretry: 1\n\r\ndata: a\ndata:  b\ndata\n\n\n\ndata: tail"
)
EVENTS = [b"one", b"two", b"a\n b\n"]


def test_only_data_comes_out():
    assert parse(STREAM) == EVENTS


def test_every_split_in_two_gives_the_same_events():
    for cut in range(len(STREAM) + 1):
        assert parse(STREAM[:cut], STREAM[cut:]) == EVENTS, cut


def test_every_split_in_three_of_a_short_stream_gives_the_same_events():
    stream = b"data: a\r\n\r\n:c\n\ndata:b\n\n"
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            assert parse(stream[:first], stream[first:second], stream[second:]) == [b"a", b"b"], (first, second)


def test_byte_by_byte_gives_the_same_events():
    assert parse(*(bytes([byte]) for byte in STREAM)) == EVENTS


@settings(max_examples=200)
@given(st.text("da:t \r\nx", max_size=40).map(str.encode), st.lists(st.integers(0, 40), max_size=6))
def test_any_bytes_in_any_split_give_the_same_events(data, cuts):
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    assert parse(*(data[a:b] for a, b in itertools.pairwise(edges))) == parse(data)


@pytest.mark.parametrize(
    ("block", "data"),
    [
        (b"data: x", [b"x"]),
        (b"data:x", [b"x"]),
        (b"data:  x", [b" x"]),
        (b"data", [b""]),
        (b"data:", [b""]),
        (b"data: x\ndata: y", [b"x\ny"]),
        (b"dataset: x", []),
        (b" data: x", []),
        (b"event: x", []),
        (b": comment", []),
        (b"", []),
    ],
)
def test_fields_are_read_as_the_standard_says(block, data):
    assert parse(block + b"\n\n") == data


def test_an_event_of_exactly_the_limit_passes_and_one_byte_more_does_not():
    event = b"data: " + b"x" * (EVENT_BYTES_MAX - 6)
    assert parse(event + b"\n\n") == [event[6:]]
    assert parse(event + b"x\n\n") == ["malformed"]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
@pytest.mark.parametrize("size", [EVENT_BYTES_MAX - 1, EVENT_BYTES_MAX, EVENT_BYTES_MAX + 1])
def test_the_limit_does_not_depend_on_where_an_event_was_split(end, size):
    stream = b"data: first" + end + b"data: " + b"x" * (size - 6) + end
    whole = parse(stream)
    assert (whole[-1] == "malformed") == (size > EVENT_BYTES_MAX)
    for cut in range(len(stream) - len(end) - 1, len(stream) + 1):
        assert parse(stream[:cut], stream[cut:]) == whole, cut


def test_an_event_that_never_ends_is_stopped_and_those_before_it_come_out():
    assert parse(b"data: a\n\n", b"x" * EVENT_BYTES_MAX, b"xx") == [b"a", "malformed"]
    assert parse(b"data: a\n\n" + b"x" * (EVENT_BYTES_MAX + 2)) == [b"a", "malformed"]


def test_many_lines_do_not_add_up_to_a_way_around_the_limit():
    line = b"data: " + b"x" * 1000 + b"\n"
    assert parse(*[line] * (EVENT_BYTES_MAX // len(line) + 1)) == ["malformed"]
