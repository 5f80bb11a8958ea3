"""Where C2SP tlog-tiles puts a tree's hashes and entries, and what stands in each file. Pure.

A tile is up to 256 hashes of one level of the tree, one under the other; level n has the roots of complete subtrees of 256**n
leaves. A bundle is up to 256 entries. The last tile of a level, if it is not full, is partial and says its width in its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.audit.tree import HASH_BYTES, node_hash

TILE_LEVELS = 8  # levels of the tree in a tile
TILE_WIDTH = 1 << TILE_LEVELS
TILE_BYTES = TILE_WIDTH * HASH_BYTES
ENTRY_BYTES_MAX = 2**16 - 1  # what a length in a bundle can say
_LENGTH_BYTES = 2


class BadBundle(Exception):
    """These bytes are not a sequence of entries."""


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """`tile/<level>/<index>[.p/<width>]`, below the log's directory."""
    return _path(str(level), index, width)


def bundle_path(index: int, width: int = TILE_WIDTH) -> str:
    """`tile/entries/<index>[.p/<width>]`, below the log's directory."""
    return _path("entries", index, width)


def partial_directory(path: str) -> str:
    """Where the partial tiles or bundles lie that a full one replaces."""
    return path + ".p"


def width_of(level: int, index: int, size: int) -> int:
    """How many hashes a tile has in a tree of `size` leaves; of level 0, how many entries its bundle. 0 if there is none."""
    return max(0, min(TILE_WIDTH, (size >> TILE_LEVELS * level) - index * TILE_WIDTH))


def tiles_of(size: int) -> Iterator[tuple[int, int, int]]:
    """Every tile of a tree of `size` leaves, as level, index and width."""
    level = 0
    while hashes := size >> TILE_LEVELS * level:
        for index in range(-(-hashes // TILE_WIDTH)):
            yield level, index, width_of(level, index, size)
        level += 1


def subtree_in_tile(tile: bytes, level: int, index: int) -> bytes:
    """The root of the subtree of 2**level hashes number `index` of a tile, counted in such subtrees."""
    hashes = [
        tile[place : place + HASH_BYTES]
        for place in range((index << level) * HASH_BYTES, (index + 1 << level) * HASH_BYTES, HASH_BYTES)
    ]
    while len(hashes) > 1:
        hashes = [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]


def framed(entry: bytes) -> bytes:
    """An entry as it stands in a bundle."""
    return len(entry).to_bytes(_LENGTH_BYTES, "big") + entry


def entries_in(bundle: bytes) -> Sequence[bytes]:
    """The entries of a bundle."""
    entries: list[bytes] = []
    place = 0
    while place < len(bundle):
        start = place + _LENGTH_BYTES
        place = start + int.from_bytes(bundle[place:start], "big")
        if start > len(bundle) or place > len(bundle):
            raise BadBundle(f"entry {len(entries)} of it is cut off")
        entries.append(bundle[start:place])
    return entries


def _path(kind: str, index: int, width: int) -> str:
    *high, low = _thousands(index)
    number = "/".join([*(f"x{digits}" for digits in high), low])
    return f"tile/{kind}/{number}" + ("" if width == TILE_WIDTH else f".p/{width}")


def _thousands(index: int) -> Sequence[str]:
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.insert(0, f"{index % 1000:03d}")
    return groups
