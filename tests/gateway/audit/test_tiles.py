"""Paths and contents of tiles and bundles, by the examples of C2SP tlog-tiles."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit.tiles import (
    ENTRY_BYTES_MAX,
    BadBundle,
    bundle_path,
    entries_in,
    framed,
    subtree_in_tile,
    tile_path,
    tiles_of,
    width_of,
)
from gateway.audit.tree import Frontier


@pytest.mark.parametrize(
    ("index", "path"),
    [
        (0, "000"),
        (67, "067"),
        (999, "999"),
        (1000, "x001/000"),
        (1234067, "x001/x234/067"),
        (10**9, "x001/x000/x000/000"),
    ],
)
def test_an_index_is_groups_of_three_digits(index, path):
    assert tile_path(3, index) == f"tile/3/{path}"
    assert tile_path(0, index, 112) == f"tile/0/{path}.p/112"
    assert bundle_path(index) == f"tile/entries/{path}"
    assert bundle_path(index, 1) == f"tile/entries/{path}.p/1"


def test_the_trees_of_the_specification_have_the_tiles_that_it_lists():
    """70,000: "273 full level 0 tiles, one partial level 0 tile of width 112, one full level 1 tile, ..."."""
    assert Counter((level, width) for level, _, width in tiles_of(70_000)) == {
        (0, 256): 273, (0, 112): 1, (1, 256): 1, (1, 17): 1, (2, 1): 1,
    }  # fmt: skip
    assert list(tiles_of(256)) == [(0, 0, 256), (1, 0, 1)]
    assert list(tiles_of(0)) == []


@given(st.integers(0, 2**62), st.integers(0, 7))
def test_a_partial_tile_has_the_width_of_the_specification(size, level):
    assert width_of(level, size // 256**level // 256, size) == size // 256**level % 256
    assert width_of(level, size // 256**level // 256 + 1, size) == 0


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_a_bundle_reads_as_it_was_written(entries):
    assert list(entries_in(b"".join(map(framed, entries)))) == entries


def test_an_entry_is_framed_by_its_length_in_two_bytes():
    assert framed(b"abc") == b"\x00\x03abc"
    assert entries_in(framed(bytes(ENTRY_BYTES_MAX)) + b"\x00\x00") == [bytes(ENTRY_BYTES_MAX), b""]


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_bundle_that_is_cut_off_is_refused(cut):
    with pytest.raises(BadBundle, match="entry 1"):
        entries_in((framed(b"ab") + framed(b"cde"))[:-cut])


def test_a_subtree_in_a_tile_is_hashed_from_the_tiles_hashes():
    hashes = [bytes([number]) * 32 for number in range(8)]
    frontier = Frontier()
    for number in (4, 5, 6, 7):
        frontier.append(hashes[number])
    assert subtree_in_tile(b"".join(hashes), 0, 3) == hashes[3]
    assert subtree_in_tile(b"".join(hashes), 2, 1) == frontier.root()
