"""A body is compressed as the client asked, and every release can be read as soon as it comes."""

import zlib

import pytest
from backports.zstd import ZstdDecompressor
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge.compression import GzipEncoder, ZstdEncoder, negotiate


class Gunzip:
    def __init__(self):
        self._inner = zlib.decompressobj(wbits=31)

    def decompress(self, data):
        return self._inner.decompress(data)

    @property
    def eof(self):
        return self._inner.eof


CODINGS = [(ZstdEncoder, ZstdDecompressor), (GzipEncoder, Gunzip)]
coding = pytest.mark.parametrize(("encoder", "decoder"), CODINGS, ids=["zstd", "gzip"])


@coding
@given(parts=st.lists(st.binary(max_size=200), min_size=1, max_size=6))
def test_every_part_can_be_read_before_the_next_is_made(encoder, decoder, parts):
    encoding, decoding = encoder(), decoder()
    for number, part in enumerate(parts, start=1):
        data = encoding.encode(part, last=number == len(parts))
        assert decoding.decompress(data) == part
    assert decoding.eof


@coding
def test_a_body_that_was_cut_does_not_look_whole(encoder, decoder):
    decoding = decoder()
    decoding.decompress(encoder().encode(b"hello", last=False))
    assert not decoding.eof


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (None, None), ("", None), ("identity", None), ("br", None), ("*", None), ("gzip", "gzip"), ("GZIP", "gzip"),
        ("zstd", "zstd"), ("gzip, zstd", "zstd"), ("gzip;q=1.0, zstd;q=0", "gzip"), ("zstd;q=0.0", None),
        ("gzip; q=0.000", None), ("gzip ; q=0.5", "gzip"), ("deflate, gzip;q=0, br", None), ("xgzip", None),
        (",,;;,gzip", "gzip"),
    ],
)  # fmt: skip
def test_the_best_coding_that_the_client_accepts_is_chosen(header, chosen):
    encoder = negotiate(header)
    assert (encoder.coding if encoder is not None else None) == chosen


@given(st.text(max_size=40))
def test_no_header_breaks_the_negotiation(header):
    negotiate(header)


@coding
def test_the_same_releases_give_the_same_bytes(encoder, decoder):
    def body():
        encoding = encoder()
        return [encoding.encode(b"hello ", last=False), encoding.encode(b"world", last=True)]

    assert body() == body()
