"""A log and its witnesses, over real sockets: what a quorum has cosigned is kept, and a contradiction as well."""

import asyncio
import shutil
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import web

from gateway.audit import cosignatures as module
from gateway.audit.cosignatures import Cosignatures
from gateway.audit.log import SignedLog
from gateway.audit.note import Checkpoint, Note, Signer
from gateway.audit.quorum import parse
from gateway.audit.witnessed import CONTRADICTED, WITNESSED
from gateway.clock import SystemClock
from gateway.metrics import Metrics, counted
from gateway.ports import AuditFailed
from gateway.record import Entry, Stopped
from policy.rules import Audit, WitnessRule
from tests.gateway.audit.witnesses import CarefulWitness, serving


class Host:
    """A directory, its log, and whom it asks."""

    def __init__(self, directory, text, *, within_s=3600) -> None:
        self.directory = directory
        self.metrics = Metrics()
        self.rules = Audit(directory=str(directory), witnesses=WitnessRule(policy="w.txt", within_s=within_s))
        self.quorum = parse(text.encode())
        self.log = SignedLog(self.rules, clock=SystemClock(), metrics=self.metrics)
        self.logged = []

    def cosignatures(self) -> Cosignatures:
        return Cosignatures(
            self.rules,
            self.quorum,
            audit=self.log,
            clock=SystemClock(),
            metrics=self.metrics,
            log=lambda _, **fields: self.logged.append(fields),
        )

    async def grow(self, count=1):
        await self.log.append([Entry(Stopped(at_ms=number, holder="h")) for number in range(count)])
        await self.log._notary.sign()

    @asynccontextmanager
    async def asking(self):
        task = asyncio.create_task(self.cosignatures().run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def witnessed(self):
        """The size that a quorum has cosigned, 0 for none; and who they were."""
        try:
            note = Note.parse((self.directory / WITNESSED).read_bytes())
        except FileNotFoundError:
            return 0, []
        note.verified([self.log.verifier])
        verifiers = [witness.verifier for witness in self.quorum.witnesses.values()]
        return Checkpoint.parse(note.text).size, [signature.name for signature in note.verified(verifiers)]

    def errors(self, name):
        return counted(self.metrics.registry, "weir_audit_witness_errors", witness=name)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  files
            await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(module, "ASK_S", 0.05)


@pytest.fixture
async def pair():
    careful = [CarefulWitness("one"), CarefulWitness("two")]
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(witness.add_checkpoint)) for witness in careful]
        lines = [f"witness {w.verifier.name} {w.verifier} {url}\n" for w, url in zip(careful, urls, strict=True)]
        yield careful, "".join(lines)


def known(host, careful) -> None:
    for witness in careful:
        witness.log = host.log.verifier


async def test_the_newest_checkpoint_that_a_quorum_has_cosigned_is_kept_with_all_cosignatures(tmp_path, pair):
    careful, lines = pair
    host = Host(tmp_path, lines + "group g any one two\nquorum g")
    known(host, careful)
    async with host.asking():
        await host.grow(3)
        await until(lambda: host.witnessed() == (3, ["one", "two"]))
        careful[1].log = None  # from here on it answers 404
        await host.grow(300)
        await until(lambda: host.witnessed() == (303, ["one"]))
        await until(lambda: host.errors("two"))
    assert host.errors("one") == 0
    assert host.logged == [{"witness": "two", "fault": "it answered 404"}]
    assert len((tmp_path / "tree" / "checkpoint").read_bytes().split(b"\n")) == 6, "the log's own has no cosignatures"


async def test_less_than_a_quorum_changes_nothing_and_is_asked_again(tmp_path, pair):
    careful, lines = pair
    host = Host(tmp_path, lines + "group g all one two\nquorum g")
    careful[0].log = host.log.verifier
    await host.grow()
    async with host.asking():
        await until(lambda: host.errors("two") >= 3)
        assert host.witnessed() == (0, [])
        assert len(host.logged) == 1, "one line until something changes"
        known(host, careful)
        await until(lambda: host.witnessed() == (1, ["one", "two"]))


async def test_a_log_that_is_idle_is_cosigned_anew_but_not_at_every_look(tmp_path, pair):
    careful, lines = pair
    host = Host(tmp_path, lines + "quorum one", within_s=2)
    known(host, careful)
    await host.grow()
    async with host.asking():
        await until(lambda: careful[0].requests)
        first = (tmp_path / WITNESSED).stat().st_mtime_ns if host.witnessed()[0] else 0
        await asyncio.sleep(0.3)
        assert careful[0].requests == 1
        await until(lambda: careful[0].requests >= 3)
        await until(lambda: (tmp_path / WITNESSED).stat().st_mtime_ns > first)


async def test_a_contradiction_is_kept_across_restarts_until_all_is_well_again(tmp_path, pair):
    # Arrange: a copy is made, and the log goes on.
    careful, lines = pair
    host = Host(tmp_path / "log", lines + "group g any one two\nquorum g")
    known(host, careful)
    await host.grow(5)
    shutil.copytree(tmp_path / "log", tmp_path / "copy")
    async with host.asking():
        await host.grow(5)
        await until(lambda: host.witnessed()[0] == 10)
    await host.log.close()

    # Act, assert: the copy is told, whether it is shorter or has grown another way; one witness is enough.
    careful[1].log = None
    for grown in (0, 20):
        copy = Host(tmp_path / "copy", lines + "group g any one two\nquorum g")
        await copy.grow(grown)
        async with asyncio.timeout(10):
            await copy.cosignatures().run()  # ends: nothing will make this log good but a restart
        assert (tmp_path / "copy" / CONTRADICTED).read_text().startswith("one: it has cosigned 10 ")
        assert copy.witnessed() == (0, [])
        await copy.log.close()

    # Act, assert: repaired, it serves again.
    shutil.copy(tmp_path / "copy" / CONTRADICTED, tmp_path / "log" / CONTRADICTED)
    known(host, careful)
    again = Host(tmp_path / "log", lines + "group g any one two\nquorum g")
    async with again.asking():
        await until(lambda: not (tmp_path / "log" / CONTRADICTED).exists())
    assert again.witnessed()[0] == 10


async def test_a_log_whose_tree_cannot_be_read_any_more_ends_the_process(tmp_path, pair):
    careful, lines = pair
    host = Host(tmp_path, lines + "quorum one")
    known(host, careful)
    await host.grow(3)
    async with host.asking():
        await until(lambda: host.witnessed()[0] == 3)
    await host.grow(2)
    shutil.rmtree(tmp_path / "tree" / "tile")
    with pytest.raises(AuditFailed, match="missing"):
        await host.cosignatures().run()


async def test_a_directory_that_cannot_be_written_ends_the_process(tmp_path, pair):
    careful, lines = pair
    host = Host(tmp_path, lines + "quorum one")
    known(host, careful)
    await host.grow()
    (tmp_path / WITNESSED).mkdir()
    with pytest.raises(AuditFailed, match="Is a directory"):
        await host.cosignatures().run()


async def test_a_file_about_other_logs_is_refused(tmp_path, pair):
    _, lines = pair
    other = Signer(name="other", seed=bytes(32)).verifier
    host = Host(tmp_path, f"log {other}\n{lines}quorum one")
    with pytest.raises(
        ValueError, match=r"names logs, and not this one, or not by the key that it has now: log weir\.log/"
    ):
        host.cosignatures()
    host.quorum = parse(f"log {other}\nlog {host.log.verifier}\n{lines}quorum one".encode())
    host.cosignatures()


async def test_a_witness_that_says_a_lot_counts_once(tmp_path):
    talkative = CarefulWitness("one")

    async def answer(request: web.Request) -> web.Response:
        text = Note.parse((await request.read()).partition(b"\n\n")[2]).text
        lines = [talkative.cosignature(text, at_s=time_s).line() for time_s in (1, 2, 3)]
        return web.Response(text="".join(lines))

    async with serving(answer) as url:
        host = Host(tmp_path, f"witness one {talkative.verifier} {url}\nquorum one")
        await host.grow()
        async with host.asking():
            await until(lambda: host.witnessed() == (1, ["one"]))
    assert host.quorum.since_s(Note.parse((tmp_path / WITNESSED).read_bytes()), now_s=10) == 3
