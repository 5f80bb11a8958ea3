"""What witnesses have cosigned, and which file said who they are, is held against the log by whoever verifies it."""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.audit.note import Checkpoint, Note, Signer, Verifier
from gateway.audit.quorum import Quorum, parse
from gateway.clock import SystemClock
from tests.gateway.audit.recorded import YEAR_S, Recorder, opened, sign, verified
from tests.gateway.audit.test_tampering import ACTS
from tests.gateway.audit.witnesses import CarefulWitness

NAMES = ("north", "south", "east")


@dataclass
class Log:
    """A log of which two of three witnesses have cosigned the first half, and its key was changed after that."""

    directory: Path
    verifier: Verifier
    witnesses: dict[str, CarefulWitness]
    quorum: Quorum

    @property
    def path(self) -> Path:
        return self.directory / "witnessed"

    @property
    def note(self) -> Note:
        return Note.parse(self.path.read_bytes())

    def cosigned(self, note: Note, **at_s: int) -> None:
        made = tuple(self.witnesses[name].cosignature(note.text, at_s=time_s) for name, time_s in at_s.items())
        self.path.write_bytes(Note(text=note.text, signatures=note.signatures + made).encode())

    def found(self, quorum: Quorum | None = None, **more) -> list[str]:
        verification = verified(self.directory, verifier=self.verifier, quorum=quorum or self.quorum, **more)
        return [str(finding) for finding in verification.findings.all]


def now_s() -> int:
    return int(SystemClock().wall_s())


def file_of(witnesses: dict[str, CarefulWitness], *, least: int = 2, more: str = "") -> bytes:
    lines = [f"witness {name} {one.verifier} http://{name}" for name, one in witnesses.items()]
    return "\n".join([more, *lines, f"group most {least} {' '.join(witnesses)}", "quorum most", ""]).encode()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Log:
    directory = tmp_path_factory.mktemp("recorded") / "audit"
    witnesses = {name: CarefulWitness(f"{name}.example/w") for name in NAMES}
    quorum = parse(file_of(witnesses))

    async def record() -> Verifier:
        log = opened(directory)
        first = log.verifier
        recorder = Recorder(log, "h")
        await recorder.begin(witnesses=quorum.digest)
        await recorder.answer("a")
        note = Note.parse(await sign(log))
        made = tuple(witnesses[name].cosignature(note.text) for name in NAMES[:2])
        (directory / "witnessed").write_bytes(Note(text=note.text, signatures=note.signatures + made).encode())
        await log.rekey()
        await recorder.answer("b")
        await recorder.end()
        await log.close()
        return first

    return Log(directory=directory, verifier=asyncio.run(record()), witnesses=witnesses, quorum=quorum)


@pytest.fixture
def log(recorded, tmp_path) -> Log:
    shutil.copytree(recorded.directory, tmp_path / "audit")
    return Log(tmp_path / "audit", recorded.verifier, recorded.witnesses, recorded.quorum)


def test_what_a_quorum_has_seen_is_in_order_and_said(log):
    verification = verified(log.directory, verifier=log.verifier, quorum=log.quorum)
    assert verification.findings.all == []
    summary = verification.summary
    assert summary.witnessed == Checkpoint.parse(log.note.text).size < summary.records
    assert abs(summary.witnessed_s - now_s()) < 600


@pytest.mark.parametrize("act", ACTS)
def test_whatever_is_done_to_the_file_is_found_and_named(log, act):
    ACTS[act](log.path)
    assert any(str(log.path) in line for line in log.found()), log.found()


def test_a_flipped_bit_anywhere_in_it_is_found(log):
    before = log.path.read_bytes()
    for place in range(len(before)):
        data = bytearray(before)
        data[place] ^= 1 << place % 8
        log.path.write_bytes(data)
        assert any(str(log.path) in line for line in log.found()), (place, bytes(data))


def test_a_cosignature_of_another_checkpoint_is_false(log):
    other = Checkpoint.parse(log.note.text)
    other = Checkpoint(origin=other.origin, size=other.size, root=bytes(32)).text()
    made = log.witnesses["south"].cosignature(other)
    (own, north, _) = log.note.signatures
    log.path.write_bytes(Note(text=log.note.text, signatures=(own, north, made)).encode())
    assert log.found() == [
        f"{log.path}: the cosignature by south (south.example/w) is false",
        f"{log.path}: shows no quorum of the witnesses",
    ]


def test_one_witness_that_signs_twice_is_no_quorum_and_neither_is_the_future(log):
    own = Note(text=log.note.text, signatures=log.note.signatures[:1])
    log.cosigned(own, north=now_s())
    assert log.found() == [f"{log.path}: shows no quorum of the witnesses"]
    log.cosigned(own, north=now_s(), south=now_s() + 2 * YEAR_S)
    assert f"{log.path}: the cosignature by south (south.example/w) is from the future" in log.found()
    log.cosigned(own, north=now_s(), east=now_s())
    assert log.found() == []


def test_whom_the_file_does_not_name_is_said(log):
    fewer = {name: log.witnesses[name] for name in ("north", "east")}
    found = log.found(parse(file_of(fewer, least=1)))
    assert any("has a signature by south.example/w+" in line and "does not name" in line for line in found), found


def test_the_logs_own_signature_counts_too_and_must_be_of_the_key_of_that_time(log):
    checkpoint = Checkpoint.parse(log.note.text)
    key = Signer.parse((log.directory / "log.key").read_text().strip())
    log.cosigned(checkpoint.signed([key]), north=now_s(), south=now_s())
    assert any(f"{log.path}: not signed by {log.verifier}" in line for line in log.found()), log.found()


def test_a_log_that_is_not_the_one_that_was_cosigned_is_found_even_without_the_witnesses_file(log):
    """Whoever has the log's key writes another history, and cannot make the witnesses cosign it."""
    other = log.directory.with_name("other")
    other.mkdir()
    key = Signer(name=log.verifier.name, seed=bytes(32))
    (other / "log.key").write_text(f"{key.skey()}\n")
    (other / "log.vkey").write_text(f"{key.verifier}\n")

    async def record(answers: int) -> bytes:
        audit = opened(other)
        recorder = Recorder(audit, f"h{answers}")
        await recorder.begin(witnesses=log.quorum.digest)
        for number in range(answers):
            await recorder.answer(f"{answers}-{number}")
        await recorder.end()
        await audit.close()
        return (other / "tree" / "checkpoint").read_bytes()

    asyncio.run(record(3))
    size = Checkpoint.parse(Note.parse((other / "tree" / "checkpoint").read_bytes()).text).size
    forged = Log(other, key.verifier, log.witnesses, log.quorum)
    for cosigned_size, said in (
        (size - 1, "there are two logs of one key"),
        (size + 9, "it was rolled back; or, in a copy"),
    ):
        note = Checkpoint(origin=key.name, size=cosigned_size, root=bytes([7]) * 32).signed([key])
        forged.cosigned(note, north=now_s(), south=now_s())
        assert any(said in line for line in forged.found()), forged.found()
        findings = verified(other, verifier=key.verifier).findings
        assert any(said in str(one) for one in findings.all)
        assert any("give the witnesses' file of the policy, with --witnesses" in one for one in findings.remarks)


def test_in_a_copy_made_while_a_gateway_wrote_it_may_be_newer_than_the_checkpoint(log):
    """The checkpoint was copied first, then the segments, and this file last."""
    older = log.directory.with_name("older")

    async def record() -> tuple[Verifier, Note]:
        audit = opened(older)
        recorder = Recorder(audit, "h")
        await recorder.begin(witnesses=log.quorum.digest)
        before = await sign(audit)
        await recorder.answer("a")
        newer = await sign(audit)
        await audit.close()
        (older / "tree" / "checkpoint").write_bytes(before)
        return audit.verifier, Note.parse(newer)

    verifier, newer = asyncio.run(record())
    copy = Log(older, verifier, log.witnesses, log.quorum)
    copy.cosigned(newer, north=now_s(), south=now_s())
    verification = verified(older, verifier=verifier, quorum=log.quorum)
    assert not verification.findings.all
    assert any("newer than the checkpoint" in remark for remark in verification.findings.remarks)
    seed = Signer.parse((older / "log.key").read_text().strip())
    checkpoint = Checkpoint.parse(newer.text)
    forged = Checkpoint(origin=checkpoint.origin, size=checkpoint.size, root=bytes(32)).signed([seed])
    copy.cosigned(forged, north=now_s(), south=now_s())
    assert copy.found() == [
        f"{copy.path}: was cosigned with {checkpoint.size} records, which are not those of this log"
    ]


def test_a_missing_file_is_found_by_whoever_brings_the_witnesses(log):
    log.path.unlink()
    assert log.found() == [f"{log.path}: is missing: nothing shows that a quorum of the witnesses has seen this log"]
    assert not verified(log.directory, verifier=log.verifier).findings.all


def test_a_witness_that_contradicts_is_found(log):
    (log.directory / "contradicted").write_text("north: it has cosigned 9 other entries\n")
    (line,) = log.found()
    assert line.startswith(f"{log.directory}/contradicted: a witness says that this is not the log")
    assert "north: it has cosigned 9 other entries" in line


def test_another_file_of_witnesses_than_the_one_in_force_is_found(log):
    """The operator shows the auditor a file that names friends of hers."""
    swapped = parse(file_of(log.witnesses, more="# friends"))
    assert log.found(swapped) == [
        f"record 0: says that the witnesses' file has SHA-256 {log.quorum.digest}; the file that you gave has"
        f" SHA-256 {swapped.digest}"
    ]


def test_a_file_that_was_swapped_between_two_starts_is_on_the_record(log):
    other = parse(file_of(log.witnesses, more="# another")).digest

    async def lives() -> None:
        audit = opened(log.directory)
        for holder, digest in (("h2", other), ("h3", other), ("h4", ""), ("h5", log.quorum.digest)):
            recorder = Recorder(audit, holder)
            await recorder.begin(witnesses=digest)
            await recorder.end()
        await audit.close()

    asyncio.run(lives())
    verification = verified(log.directory, verifier=log.verifier, quorum=log.quorum)
    assert verification.findings.all == []
    changes = [remark for remark in verification.findings.remarks if "from here on" in remark]
    assert [other in changes[0], "no witnesses are asked" in changes[1], log.quorum.digest in changes[2]] == [True] * 3
    assert len(changes) == 3


def test_a_file_about_other_logs_is_found(log):
    other = Signer(name="other", seed=bytes(32)).verifier
    found = log.found(parse(file_of(log.witnesses, more=f"log {other}")))
    assert f"{log.path}: the witnesses' file that you gave names logs, and not this one" in found
    ours = parse(file_of(log.witnesses, more=f"log {log.verifier}"))
    assert not any("names logs" in line for line in log.found(ours)), "by whichever of its keys"
