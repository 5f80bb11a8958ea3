"""Witnesses over real sockets: one that follows the protocol of C2SP tlog-witness, and ones that do not."""

import asyncio
import time
from functools import partial

import aiohttp
import pytest
from aiohttp import web

from gateway.audit import witness as module
from gateway.audit.note import BadNote, Checkpoint, Note, Signer
from gateway.audit.quorum import Witness
from gateway.audit.tiled import TiledTree, TileFiles
from gateway.audit.tree import consistency_proof
from gateway.audit.witness import ANSWER_BYTES_MAX, Witnesses
from tests.gateway.audit.witnesses import CarefulWitness as AnyWitness
from tests.gateway.audit.witnesses import Handler, serving

ORIGIN = "example.com/egress/host"
LOG = Signer(name=ORIGIN, seed=bytes(32))
CarefulWitness = partial(AnyWitness, log=LOG.verifier)


class Log:
    """A log that grows, and asks these witnesses."""

    def __init__(self, directory, session: aiohttp.ClientSession, *witnesses: Witness) -> None:
        self._directory = directory
        self.tree = TiledTree(directory, origin=ORIGIN, signers=[LOG])
        self._witnesses = Witnesses(witnesses, session=session)

    async def cosigned(self, size: int):
        self.tree.append([b"%d" % number for number in range(self.tree.size, size)])
        note = self.tree.commit()
        files = TileFiles(self._directory, self.tree.size)
        found = await self._witnesses.cosign(note, lambda old: consistency_proof(files.subtree, old, files.size))
        return note, found


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as session:
        yield session


async def test_every_checkpoint_is_cosigned_as_the_log_grows(tmp_path, session):
    careful = [CarefulWitness("w1"), CarefulWitness("w2")]
    async with serving(careful[0].add_checkpoint) as one, serving(careful[1].add_checkpoint) as two:
        witnesses = [
            Witness(name=witness.verifier.name, url=url, verifier=witness.verifier)
            for url, witness in zip((one, two + "/"), careful, strict=True)
        ]
        log = Log(tmp_path, session, *witnesses)
        for count, size in enumerate((0, 1, 300, 300, 1000), start=1):
            note, found = await log.cosigned(size)
            assert not found.faults
            assert not found.contradicted
            published = Note.parse(found.under(note).encode())
            verified = published.verified([LOG.verifier, *(witness.verifier for witness in careful)])
            assert [signature.name for signature in verified] == [ORIGIN, "w1", "w2"]
            assert abs(verified[1].time_s() - time.time()) < 60
            assert [witness.requests for witness in careful] == [count, count], "no try was wasted"


async def test_a_witness_that_knows_more_than_we_remember_is_told_from_there(tmp_path, session):
    careful = CarefulWitness("w")
    async with serving(careful.add_checkpoint) as url:
        witness = Witness(name="w", url=url, verifier=careful.verifier)
        await Log(tmp_path, session, witness).cosigned(300)
        _, found = await Log(tmp_path, session, witness).cosigned(700)
        assert [signature.name for signature in found.signatures] == ["w"]
        assert careful.requests == 3


async def test_a_log_that_was_set_back_is_told_so_and_cosigned_by_nobody(tmp_path, session):
    careful = CarefulWitness("w")
    async with serving(careful.add_checkpoint) as url:
        witness = Witness(name="w", url=url, verifier=careful.verifier)
        await Log(tmp_path / "one", session, witness).cosigned(300)
        _, found = await Log(tmp_path / "copy", session, witness).cosigned(200)
        assert not found.signatures
        assert "has cosigned 300 entries of this log, which has 200" in found.faults["w"]
        assert found.contradicted == ("w",)


async def test_a_log_with_another_past_is_cosigned_by_nobody(tmp_path, session):
    careful = CarefulWitness("w")
    async with serving(careful.add_checkpoint) as url:
        witness = Witness(name="w", url=url, verifier=careful.verifier)
        await Log(tmp_path / "one", session, witness).cosigned(300)
        other = Log(tmp_path / "other", session, witness)
        other.tree.append([b"another past"])
        _, found = await other.cosigned(400)
        assert not found.signatures
        assert "has cosigned 300 other entries of this log" in found.faults["w"]
        assert found.contradicted == ("w",)


async def test_a_log_of_the_same_size_with_another_past_is_cosigned_by_nobody(tmp_path, session):
    careful = CarefulWitness("w")
    async with serving(careful.add_checkpoint) as url:
        witness = Witness(name="w", url=url, verifier=careful.verifier)
        await Log(tmp_path / "one", session, witness).cosigned(300)
        other = Log(tmp_path / "other", session, witness)
        other.tree.append([b"another past"])
        _, found = await other.cosigned(300)
        assert not found.signatures
        assert found.contradicted == ("w",)


async def test_a_witness_that_was_wrong_about_us_once_is_asked_again(tmp_path, session):
    careful = CarefulWitness("w", size=10**9)
    async with serving(careful.add_checkpoint) as url:
        log = Log(tmp_path, session, Witness(name="w", url=url, verifier=careful.verifier))
        _, found = await log.cosigned(5)
        assert "has cosigned 1000000000 entries" in found.faults["w"]
        careful.size = 0
        _, found = await log.cosigned(6)
        assert found.signatures


def answering(status: int, body: bytes) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    return answer


STRANGER = CarefulWitness("stranger")


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (200, b"", "lines of signatures"),
        (200, b"hello\n", "not a signature line"),
        (200, b"\xff\n", "not a signature line"),
        (200, STRANGER.cosignature("x").line().encode(), "not signed by w"),
        (200, bytes(ANSWER_BYTES_MAX + 1), "more than"),
        (302, b"", "it answered 302"),
        (403, b"", "it answered 403"),
        (404, b"", "it answered 404"),
        (409, b"12", "it answered 409"),
        (409, b"012\n", "it answered 409"),
        (409, b"9999999999999999999\n", "it answered 409"),
        (409, b"0\n", "changes its mind"),
        (409, b"99\n", "has cosigned 99 entries"),
        (500, b"", "it answered 500"),
    ],
)
async def test_a_witness_that_does_otherwise_harms_nobody_else(tmp_path, session, status, body, fault):
    bad, good = CarefulWitness("w"), CarefulWitness("good")
    async with serving(answering(status, body)) as one, serving(good.add_checkpoint) as two:
        log = Log(
            tmp_path,
            session,
            Witness(name="w", url=one, verifier=bad.verifier),
            Witness(name="good", url=two, verifier=good.verifier),
        )
        _, found = await log.cosigned(5)
        assert [signature.name for signature in found.signatures] == ["good"]
        assert set(found.faults) == {"w"}
        assert fault in found.faults["w"]


async def test_a_cosignature_of_another_checkpoint_is_not_believed(tmp_path, session):
    careful = CarefulWitness("w")
    line = careful.cosignature(Checkpoint(origin=ORIGIN, size=5, root=bytes(32)).text()).line().encode()
    async with serving(answering(200, line)) as url:
        _, found = await Log(tmp_path, session, Witness(name="w", url=url, verifier=careful.verifier)).cosigned(5)
        assert not found.signatures
        assert "is false" in found.faults["w"]


async def test_a_witness_that_is_silent_or_gone_is_not_waited_for(tmp_path, session, monkeypatch):
    monkeypatch.setattr(module, "WITNESS_TIMEOUT_S", 0.3)
    silent, gone, good = CarefulWitness("silent"), CarefulWitness("gone"), CarefulWitness("good")

    async def sleep(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async with serving(good.add_checkpoint) as closed:
        pass
    async with serving(sleep) as one, serving(good.add_checkpoint) as two:
        witnesses = [
            Witness(name=witness.verifier.name, url=url, verifier=witness.verifier)
            for url, witness in ((one, silent), (closed, gone), (two, good))
        ]
        begun = time.monotonic()
        _, found = await Log(tmp_path, session, *witnesses).cosigned(5)
        assert time.monotonic() - begun < 5
        assert [signature.name for signature in found.signatures] == ["good"]
        assert found.faults["silent"] == "no answer within 0.3 s"
        assert "gone" in found.faults


def test_a_key_that_signs_logs_is_no_witness():
    with pytest.raises(BadNote, match="not a cosigner"):
        Witness(name="w", url="http://w", verifier=LOG.verifier)
