"""Signing behind the log: nothing is lost from the tree, whoever stops waiting for it."""

import asyncio
import contextlib
import threading

import pytest

from gateway.audit import tiled
from gateway.audit.notary import Notary
from gateway.audit.tiled import TREE, TileFiles


@pytest.mark.parametrize("workers", [0, 1], ids=["before its thread began", "in the middle of its thread"])
async def test_a_signing_that_is_cancelled_loses_nothing_and_the_next_one_comes_after_it(
    tmp_path, monkeypatch, workers
):
    # Arrange: a commit that lasts, or threads that are all busy.
    notary, begun, go_on = Notary(tmp_path), threading.Event(), threading.Event()
    commit = tiled.TiledTree.commit

    def slow(tree):
        begun.set()
        assert go_on.wait(10)
        return commit(tree)

    monkeypatch.setattr(tiled.TiledTree, "commit", slow)
    loop = asyncio.get_running_loop()
    busy = [] if workers else [loop.run_in_executor(None, go_on.wait, 10) for _ in range(64)]

    # Act: it is cancelled, more is taken, and it is signed again.
    notary.take(b"1\n2")
    first = asyncio.ensure_future(notary.sign())
    await asyncio.sleep(0.05)
    assert begun.is_set() == bool(workers)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    notary.take(b"3")
    second = asyncio.ensure_future(notary.sign())
    await asyncio.sleep(0.05)
    go_on.set()
    await second
    await notary.sign()
    await asyncio.gather(*busy)

    # Assert
    assert notary.signed == 3
    assert TileFiles(tmp_path / TREE, 3).entries(0) == [b"1", b"2", b"3"]
