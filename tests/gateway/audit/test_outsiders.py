"""An outsider with Go's transparency-log packages, and none of our code, verifies a log; and notices when it lies.

The program in `verifier/` uses golang.org/x/mod/sumdb/note and sumdb/tlog, which check Go's own module database.
"""

import base64
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from gateway.audit import segments
from gateway.audit.log import SignedLog
from gateway.audit.note import Signer
from gateway.audit.sealing import public_bytes
from gateway.audit.segments import segments_in
from gateway.audit.tiled import CHECKPOINT, TiledTree
from gateway.clock import SystemClock
from gateway.metrics import Metrics
from gateway.record import Closed, Entry
from policy.rules import Audit, PublicKey
from tests import go

ORIGIN = "example.com/egress/host"
SIGNER = Signer(name=ORIGIN, seed=bytes(range(32)))
SIZE = 70_000
VERIFY_S_MAX = 60.0
AUDITORS = tuple(
    PublicKey(
        name=name, algorithm="x25519", encoded=base64.b64encode(public_bytes("x25519", bytes([number]) * 32)).decode()
    )
    for number, name in enumerate(("ann", "bob"), start=1)
)
CLOSED = {
    "answer": "0123456789abcdef" * 2, "outcome": "stop", "parting_bits": 17, "text_bytes": 300, "charged_bits": 2417,
    "spent_bits": {"model:m/lifetime/all": 2**40},
}  # fmt: skip
OLDER = {"tile/0/273.p/111", "tile/entries/273.p/111"}  # of a size signed before


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return go.build(Path(__file__).parent / "verifier" / "main.go", tmp_path_factory.mktemp("go") / "verifier")


def leaf(number: int) -> bytes:
    return b'{"type":"released","at_ms":%d,"answer":"%032x","tick":3,"text_bytes":80,"charged_bits":640}' % (
        1_700_000_000_000 + number,
        number * 0x9E3779B97F4A7C15,
    )


def write(directory: Path, sizes, *, saved: Path) -> list[Path]:
    """A log committed at each size, and the checkpoints that somebody kept."""
    tree = TiledTree(directory, origin=ORIGIN, signers=[SIGNER])
    kept = []
    for size in sizes:
        tree.append([leaf(number) for number in range(tree.size, size)])
        kept.append(saved / str(size))
        kept[-1].write_bytes(tree.commit().encode())
    return kept


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log of 70,000 entries in the batches of a busy minute, and what was kept of it on the way."""
    directory, saved = tmp_path_factory.mktemp("log"), tmp_path_factory.mktemp("saved")
    sizes = [1, 2, 255, 256, 257, 1000, 5000, 12345, 40960, 65535, 65536, 69632, 69999, SIZE]
    return directory, write(directory, sizes, saved=saved)


def verify(program: Path, directory: Path, *old: Path, vkey: str = str(SIGNER.verifier)):
    return subprocess.run(
        [program, directory, vkey, *old], capture_output=True, text=True, check=False, timeout=VERIFY_S_MAX
    )


def test_an_outsider_verifies_every_entry_every_tile_and_every_checkpoint_that_was_kept(program, log):
    directory, kept = log
    done = verify(program, directory, *kept)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{SIZE} entries, ")
    assert f"{len(kept)} older checkpoints" in done.stdout


async def test_an_outsider_verifies_50_000_entries_of_the_log_that_gateways_write(program, tmp_path, monkeypatch):
    """Segments, rotation, sealing, signatures in between, and a start in the middle."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES_MAX", 4_000_000)
    rules = Audit(directory=str(tmp_path / "audit"), auditors=AUDITORS)
    kept, appended = [], 0
    for life in range(2):
        audit = SignedLog(rules, clock=SystemClock(), metrics=Metrics())
        for batch in range(100):
            entries = [
                Entry(Closed(**CLOSED, at_ms=number), b"%d" % number) for number in range(appended, appended + 255)
            ]
            await audit.append(entries)
            appended += len(entries) + 1  # and what says where their content is
            if batch % 20 == 0:
                await audit._notary.sign()
                kept.append(tmp_path / f"{life}-{batch}")
                kept[-1].write_bytes((tmp_path / "audit" / "tree" / CHECKPOINT).read_bytes())
        await audit.close()
    vkey = (tmp_path / "audit" / "log.vkey").read_text().strip()
    done = verify(program, tmp_path / "audit" / "tree", *kept, vkey=vkey)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{appended} entries, ")
    assert appended > 50_000
    assert f"{len(kept)} older checkpoints" in done.stdout
    assert len(segments_in(tmp_path / "audit")) > 3


async def test_an_outsider_follows_a_log_from_one_key_to_the_next(program, tmp_path):
    """Whoever has the first key verifies all up to the change, and the change itself; with both keys, or the last, all of it."""
    audit = SignedLog(Audit(directory=str(tmp_path / "audit")), clock=SystemClock(), metrics=Metrics())
    tree, kept = tmp_path / "audit" / "tree", []

    async def record(count: int) -> None:
        await audit.append([Entry(Closed(**CLOSED, at_ms=number)) for number in range(count)])
        await audit._notary.sign()
        kept.append(tmp_path / f"{len(kept)}")
        kept[-1].write_bytes((tree / CHECKPOINT).read_bytes())

    await record(700)
    await record(100)
    old = str(audit.verifier)
    await audit.rekey()
    new = str(audit.verifier)
    (closing,) = (tmp_path / "audit" / "epochs").iterdir()
    for vkey in (old, new):
        done = verify(program, tree, closing, vkey=vkey)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("801 entries"), "one checkpoint satisfies both"
    await record(300)
    await audit.close()
    done = verify(program, tree, *kept, closing, vkey=f"{old},{new}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1101 entries")
    assert "4 older checkpoints" in done.stdout
    done = verify(program, tree, closing, kept[-1], vkey=new)
    assert done.returncode == 0, done.stderr
    for vkey, path in ((old, tree / CHECKPOINT), (new, kept[0])):
        done = verify(program, tree, kept[0], vkey=vkey)
        assert done.returncode == 1
        assert f"{path}: note has no verifiable signatures" in done.stderr


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 513])
def test_an_outsider_verifies_a_log_of_any_size(program, tmp_path, size):
    write(tmp_path / "log", [size], saved=tmp_path)
    done = verify(program, tmp_path / "log")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{size} entries")


def test_an_outsider_refuses_another_key(program, log):
    other = Signer(name=ORIGIN, seed=bytes(32))
    done = verify(program, log[0], vkey=str(other.verifier))
    assert done.returncode == 1
    assert "no verifiable signatures" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        CHECKPOINT,
        "tile/entries/000",
        "tile/entries/273.p/112",
        "tile/0/000",
        "tile/0/100",
        "tile/0/273.p/112",
        *sorted(OLDER),
        "tile/1/000",
        "tile/1/001.p/17",
        "tile/2/000.p/1",
    ],
)
@pytest.mark.parametrize("harm", ["flip", "cut", "swap", "delete"])
def test_an_outsider_notices_what_was_changed_and_says_where(program, log, tmp_path, name, harm):
    directory = tmp_path / "log"
    shutil.copytree(log[0], directory)
    path = directory / name
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 0x01
    elif harm == "cut":
        del data[-1:]
    elif harm == "swap":
        data[-40:-30], data[-30:-20] = data[-30:-20], data[-40:-30]
    path.write_bytes(data)
    if harm == "delete":
        path.unlink()
    done = verify(program, directory, *log[1])
    if name in OLDER and harm == "delete":  # the newest checkpoint does not need it
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1, done.stdout
    assert str(path) in done.stderr


def test_an_outsider_notices_another_history(program, log, tmp_path):
    """The operator rewrites one entry, and everything after it, with the right keys: old checkpoints give her away."""
    tree = TiledTree(tmp_path / "log", origin=ORIGIN, signers=[SIGNER])
    tree.append([leaf(number + (number == 30_000)) for number in range(SIZE)])
    tree.commit()
    assert verify(program, tmp_path / "log").returncode == 0
    done = verify(program, tmp_path / "log", *log[1])
    assert done.returncode == 1
    assert "40960: not the beginning of the log" in done.stderr


def test_appending_stays_far_behind_the_hot_path(tmp_path):
    """A process records thousands of leaves a second, and a host's one writer has to keep up with all of its processes."""
    tree = TiledTree(tmp_path, origin=ORIGIN, signers=[SIGNER])
    leaves = [leaf(number) for number in range(50_000)]
    begun_s = time.thread_time()
    tree.append(leaves)
    assert len(leaves) / (time.thread_time() - begun_s) > 20_000
