"""`weir audit` on the log of a real gateway: what left is on the record, for those who may read it and for nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import msgspec
import pytest
import yaml

from gateway.audit.batch import Batch, Scribe
from gateway.audit.frames import CIPHERTEXT, frames
from gateway.audit.log import SignedLog
from gateway.audit.note import Signer
from gateway.audit.sealing import Content, Sealer, Unsealable, auditor_secret, commitment, unseal
from gateway.audit.segments import SegmentLog
from gateway.clock import SystemClock
from gateway.ledger.sqlite import SqliteLedger
from gateway.metrics import Metrics
from gateway.ports import AccountLimit, Wanted
from gateway.record import Entry, LeaseGranted, Opened, Sealed, Started
from policy.budget import Step
from policy.public_key import auditor_key
from policy.rules import Audit
from tests.e2e.backend import Backend, say
from tests.e2e.conftest import Start
from tests.e2e.processes import ALICE, BOB, Gateway, policy, until, weir

SAID = "The heron stands in the shallows, and nobody knows for how long."
ASKED = "Where does the heron stand? \u001b[31mred\u001b[0m"


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Two auditors' public keys; the private ones are files of theirs."""
    return {
        name: weir("keys", "auditor", name, "--out", str(tmp_path / f"{name}.key")).stdout for name in ("anna", "boris")
    }


def public(printed: str) -> str:
    (line,) = [word for word in printed.split() if word.strip("-\"'").startswith("weir-auditor-")]
    return line.strip("-\"'")


@pytest.fixture
def gateway(start: Start, backend: Backend, keys: dict[str, str]) -> Gateway:
    backend.script = say(SAID)

    def change(rules: dict[str, Any]) -> None:
        rules["audit"]["auditors"] = [public(printed) for printed in keys.values()]

    return start(change)


def audit(gateway: Gateway, command: str, *arguments: str | Path, status: int = 0) -> CompletedProcess[str]:
    directory = gateway.directory / "audit"
    done = weir("audit", command, str(directory), *map(str, arguments))
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def shown(gateway: Gateway, *arguments: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit(gateway, "show", *arguments, "--json").stdout.splitlines()]


def plaintexts(answer: dict[str, Any], kind: str) -> list[Any]:
    return [record["plaintext"] for record in answer["records"] if record["type"] == kind and "plaintext" in record]


def vkey(gateway: Gateway) -> Path:
    """Copied when the log was made."""
    path = gateway.directory / "given.vkey"
    shutil.copy(gateway.directory / "audit" / "log.vkey", path)
    return path


def test_what_an_auditor_decrypts_is_what_the_client_received_and_what_the_backend_was_asked(
    gateway: Gateway, backend: Backend, tmp_path: Path
) -> None:
    # Arrange: an answer in one piece, and one that streams.
    whole = gateway.ask(ASKED)
    streamed = gateway.ask(ASKED, stream=True)
    assert whole.json["choices"][0]["message"]["content"] == streamed.text == SAID
    assert gateway.stop() == 0

    for response, exchange in zip((whole, streamed), backend.exchanges, strict=True):
        answer = response.header("X-Request-Id")
        assert answer is not None
        for name in ("anna", "boris"):
            # Act
            (seen,) = shown(gateway, answer, "--key", tmp_path / f"{name}.key")

            # Assert
            assert plaintexts(seen, "opened") == [exchange.request.body.decode()]
            pieces = plaintexts(seen, "released")
            assert "".join(piece["text"] for piece in pieces) == SAID
            assert [piece["ending"]["outcome"] for piece in pieces if piece.get("ending")] == ["stop"]
            (closed,) = [record for record in seen["records"] if record["type"] == "closed"]
            assert closed["charged_bits"] == sum(r["charged_bits"] for r in seen["records"] if r["type"] == "released")
    said = audit(gateway, "show", answer, "--key", tmp_path / "anna.key").stdout
    assert f'whole text: "{SAID}"' in said
    assert "\u001b" not in said, "what somebody asked does not steer the auditor's terminal"


def test_without_a_key_or_with_somebody_elses_the_public_part_is_shown_and_nothing_that_was_said(
    gateway: Gateway, tmp_path: Path
) -> None:
    response = gateway.ask(ASKED)
    gateway.stop()
    answer = response.header("X-Request-Id") or ""
    said = audit(gateway, "show", answer).stdout
    assert "sealed: --key opens it" in said
    assert "tenant alice, model m" in said
    assert "heron" not in said
    weir("keys", "auditor", "eve", "--out", str(tmp_path / "eve.key"))
    refused = audit(gateway, "show", answer, "--key", tmp_path / "eve.key", status=1)
    assert "this key is none of theirs" in refused.stderr
    assert "heron" not in refused.stdout


def test_a_tenants_day_has_its_answers_and_no_others(gateway: Gateway, tmp_path: Path) -> None:
    mine, other = gateway.ask(ASKED, key=ALICE), gateway.ask(ASKED, key=BOB)
    gateway.stop()
    (opened,) = [
        json.loads(line)
        for line in audit(gateway, "export", "--tenant", "alice").stdout.splitlines()
        if '"opened"' in line
    ]
    assert (opened["answer"], opened["tenant"]) == (mine.header("X-Request-Id"), "alice")
    day = datetime.fromtimestamp(opened["at_ms"] / 1000, UTC)
    (answer,) = shown(gateway, "--tenant", "alice", "--day", f"{day:%Y-%m-%d}", "--key", tmp_path / "anna.key")
    assert answer["answer"] == mine.header("X-Request-Id") != other.header("X-Request-Id")
    assert audit(gateway, "export", "--to", "2020-01-01").stdout == ""
    assert len(audit(gateway, "export", "--from", "2020-01-01").stdout.splitlines()) == len(gateway.audit())
    audit(gateway, "show", "--tenant", "alice", status=2)
    audit(gateway, "show", "no-such-answer", status=1)


def test_a_log_verifies_while_the_gateway_runs_and_after_it_was_killed_and_started_again(gateway: Gateway) -> None:
    key = vkey(gateway)
    kept = []
    for round_ in range(3):
        gateway.ask(ASKED, stream=True)
        checkpoint = gateway.directory / "audit" / "tree" / "checkpoint"
        until(lambda path=checkpoint: path.exists() and int(path.read_text().split("\n")[1]) > 3, what="it is signed")
        audit(gateway, "verify", "--key", key)
        kept.append(shutil.copy(checkpoint, gateway.directory / f"kept-{round_}"))
        gateway.kill9()
        audit(gateway, "verify", "--key", key, "--since", *kept)
        gateway.start()
    gateway.idle()
    assert gateway.stop() == 0
    said = audit(gateway, "verify", "--key", key, "--since", *kept).stdout
    assert "in order" in said
    assert "older checkpoints continued" in said
    audit(gateway, "verify", "--key", "nonsense", status=1)


def test_the_records_add_up_to_what_the_ledger_says_after_answers_kills_and_grants_by_hand(gateway: Gateway) -> None:
    for _ in range(3):
        for key in (ALICE, BOB):
            gateway.ask(ASKED, key=key)
            gateway.ask(ASKED, key=key, stream=True)
        gateway.kill9()
        gateway.start()
    by_hand = "tenant:alice/lifetime/ever", "777", "--reason", "mailed"
    assert weir("ledger", "grant", *by_hand, "--policy", str(gateway.path)).returncode == 0
    gateway.idle()
    assert gateway.stop() == 0
    fold = json.loads(audit(gateway, "fold", "--policy", gateway.path, "--json").stdout)
    accounts = {row["account"]: row for row in fold["accounts"]}
    assert set(accounts) == {"model:m/lifetime/ever", "tenant:alice/lifetime/ever", "tenant:bob/lifetime/ever"}
    assert all(row["difference_bits"] == 0 and row["spent_bits"] > 0 for row in accounts.values())
    assert accounts["tenant:alice/lifetime/ever"]["by_hand_bits"] == 777
    assert (fold["forgotten"], fold["unrecorded"]) == ([], [])
    assert "difference" in audit(gateway, "fold", "--policy", gateway.path).stdout


def test_a_ledger_that_was_put_back_from_a_backup_has_forgotten_what_fold_says(gateway: Gateway) -> None:
    # Arrange
    gateway.ask(ASKED)
    gateway.idle().stop()
    ledger = gateway.directory / "ledger.db"
    shutil.copy(ledger, gateway.directory / "backup.db")
    gateway.start()
    gateway.ask(ASKED)
    gateway.idle().stop()
    shutil.copy(gateway.directory / "backup.db", ledger)

    # Act
    found = audit(gateway, "fold", "--policy", gateway.path, status=1)
    lost = audit(gateway, "fold", "--policy", gateway.path, "--lost").stdout.splitlines()

    # Assert
    assert "forgotten by the ledger" in found.stdout
    assert "tenant:alice/lifetime/ever: the ledger has" in found.stderr
    assert {line.split()[3] for line in lost} == {"model:m/lifetime/ever", "tenant:alice/lifetime/ever"}
    granted = [json.loads(line) for line in audit(gateway, "export").stdout.splitlines() if '"lease_granted"' in line]
    kept = json.loads(f"[{','.join(weir('ledger', 'export', '--policy', str(gateway.path)).stdout.splitlines())}]")
    known = {row["lease"] for row in kept if row["type"] == "lease"}
    figure = sum(leaf["bits"].get("model:m/lifetime/ever", 0) for leaf in granted if leaf["lease"] not in known)
    assert figure > 0
    assert f"weir ledger thaw model:m/lifetime/ever --lost {figure}" in lost


def test_a_proof_convinces_somebody_who_has_only_the_key(gateway: Gateway, tmp_path: Path) -> None:
    # Arrange
    response, key = gateway.ask(ASKED), vkey(gateway)
    gateway.stop()
    proof = tmp_path / "answer.tlog-proof"
    answer = response.header("X-Request-Id") or ""

    # Act
    audit(gateway, "prove", answer, "-o", proof)
    checked = weir("audit", "check-proof", str(proof), "--key", str(key))

    # Assert
    assert checked.returncode == 0, checked.stderr
    entry = checked.stdout.split("\n")[0]
    assert json.loads(entry)["type"] == "closed"
    assert json.loads(entry)["answer"] == answer
    (tmp_path / "entry").write_text(entry + "\n")
    assert (
        weir(
            "audit", "check-proof", str(proof), "--key", key.read_text().strip(), "--entry", str(tmp_path / "entry")
        ).returncode
        == 0
    )

    # Another record, another key, another proof: each refused in one line.
    (tmp_path / "entry").write_text(entry.replace('"stop"', '"length"'))
    refused = weir("audit", "check-proof", str(proof), "--key", str(key), "--entry", str(tmp_path / "entry"))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "does not show that this record" in refused.stderr
    data = bytearray(proof.read_bytes())
    data[-20] ^= 0x01  # of the signature
    proof.write_bytes(data)
    assert weir("audit", "check-proof", str(proof), "--key", str(key)).returncode == 1
    audit(gateway, "prove", "999999", "-o", proof, status=1)
    audit(gateway, "prove", "no-such-answer", "-o", proof, status=1)


def test_with_the_gateways_own_keys_and_disk_nothing_that_was_said_can_be_read(
    gateway: Gateway, backend: Backend, tmp_path: Path
) -> None:
    # Arrange: everything that the gateway has: its directory, its policy, its key of the log.
    secret = "no word of this: " + "xylophone " * 8
    backend.script = say(secret)
    assert gateway.ask(secret, stream=True).text == secret
    gateway.stop()
    directory = gateway.directory / "audit"
    everything = [path.read_bytes() for path in gateway.directory.rglob("*") if path.is_file()]

    # Act: look for it as it is; open every batch with every 32 bytes that the gateway keeps as keys.
    seed = Signer.parse((directory / "log.key").read_text().strip()).seed
    own = [auditor_secret("x25519", seed), auditor_secret("xwing", (seed * 3)[:96])]
    origin = (directory / "log.vkey").read_text().split("+")[0]
    whole = [one for segment in sorted(directory.glob("*.log")) for one in frames(segment.read_bytes())]
    ciphertexts = {sha256(one.payload).hexdigest(): one.payload for one in whole if one.kind == CIPHERTEXT}
    batches = [(ciphertexts[leaf["sha256"]], leaf["batch"]) for leaf in gateway.audit() if leaf["type"] == "sealed"]

    # Assert
    assert not any(b"xylophone" in data for data in everything)
    assert batches
    for ciphertext, batch in batches:
        for key in own:
            with pytest.raises(Unsealable):
                unseal(ciphertext, key, origin=origin, batch=batch)
    (seen,) = shown(gateway, opened(gateway), "--key", tmp_path / "anna.key")
    assert "xylophone" in json.dumps(seen), "an auditor can"


def opened(gateway: Gateway) -> str:
    """Its first answer."""
    return str(next(leaf["answer"] for leaf in gateway.audit() if leaf["type"] == "opened"))


def test_the_help_names_every_command_and_mistakes_are_one_line(tmp_path: Path) -> None:
    said = weir("audit", "--help").stdout
    for name in ("verify", "show", "prove", "check-proof", "fold", "export", "rekey"):
        assert f"weir audit {name}" in said
        assert weir("audit", name, "--help").returncode == 0
    for arguments in (("verify", "nowhere"), ("export", str(tmp_path)), ("check-proof", "nowhere", "--key", "x")):
        done = weir("audit", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert weir("audit", "verify").returncode == 2
    assert weir("audit", "fold", str(tmp_path), "--policy", str(tmp_path / "none.yaml")).returncode == 78


def test_whoever_reads_only_the_beginning_of_an_export_gets_no_traceback(gateway: Gateway) -> None:
    gateway.ask(ASKED)
    command = f"{sys.executable} -m gateway audit export {gateway.directory / 'audit'} | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith('{"number":0,')
    assert "Traceback" not in done.stderr


def test_what_was_forgotten_of_a_sliding_window_is_thawed_in_its_series(tmp_path: Path) -> None:
    """Of three grants the ledger has one, and one that was granted anew with less. After the thaw nothing is amiss any more."""
    rules = policy("http://127.0.0.1:1", tmp_path)
    (tmp_path / "weir.yaml").write_text(yaml.safe_dump(rules))
    series = "model:m/sliding 1d"
    step = Step(series=series, number=1, steps=26)

    async def arrange() -> None:
        log = SegmentLog(tmp_path / "audit", scribe=Scribe(sealer=None, clock=SystemClock()))
        grants = [
            LeaseGranted(
                at_ms=1, lease=f"l{n}", holder="h", bits={"a": 10, f"{series}/1": 5}, fences={"a": n, series: n}
            )
            for n in (1, 2, 3)
        ]
        started = Started(at_ms=1, holder="h", version="1", policy="p", codes="c", boot_id="b")
        await log.append([Entry(leaf) for leaf in (started, *grants)])
        await log.close()
        ledger = SqliteLedger(tmp_path / "ledger.db")
        await ledger.register(
            [AccountLimit(account="a", limit_bits=100), AccountLimit(account=f"{series}/1", limit_bits=100, step=step)]
        )
        for lease, bits in (("l1", {"a": 10, f"{series}/1": 5}), ("l2", {"a": 4, f"{series}/1": 1})):
            wanted = {name: Wanted(least_bits=amount, most_bits=amount) for name, amount in bits.items()}
            await ledger.grant(lease=lease, holder="h", wanted=wanted)
        await ledger.freeze({"a": 3, series: 3})
        await ledger.close()

    async def thaw(**lost_bits: int) -> None:
        ledger = SqliteLedger(tmp_path / "ledger.db")
        for account, bits in lost_bits.items():
            await ledger.thaw(series if account == "s" else account, lost_bits=bits)
        await ledger.close()

    asyncio.run(arrange())
    fold = ["audit", "fold", str(tmp_path / "audit"), "--policy", str(tmp_path / "weir.yaml")]
    assert weir(*fold, "--lost").stdout.splitlines() == [
        "weir ledger thaw a --lost 16",
        f"weir ledger thaw {shlex.quote(series)} --lost 9",
    ]
    done = weir(*fold)
    assert done.returncode == 1
    assert "a: the ledger has 16 bits less debited than the log accounts for" in done.stderr
    assert f"{series}/1: the ledger has 9 bits less" in done.stderr
    assert "forgotten by the ledger: 6 bits of a, lease l2 of h" in done.stdout
    asyncio.run(thaw(a=16, s=6))
    done = weir(*fold)
    assert f"{series}/1: the ledger has 3 bits less" in done.stderr, "too little was thawed"
    assert "a: " not in done.stderr
    assert f"weir ledger thaw {shlex.quote(series)} --lost 3" in weir(*fold, "--lost").stdout

    async def once_more(bits: int) -> None:
        ledger = SqliteLedger(tmp_path / "ledger.db")
        await ledger.freeze({series: 3})
        await ledger.close()
        await thaw(s=bits)

    asyncio.run(once_more(3))
    done = weir(*fold, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in json.loads(done.stdout)["accounts"] if row["account"] == f"{series}/1"]
    assert (row["debited_bits"], row["thawed_bits"], row["difference_bits"]) == (6, 9, 0)
    asyncio.run(once_more(2))
    done = weir(*fold)
    assert done.returncode == 1
    assert f"{series}: the ledger has 2 bits more debited" in done.stderr, "more than was forgotten"


@pytest.mark.parametrize("sealed", [b"another thing", None], ids=["another thing", "nothing"])
def test_a_gateway_that_sealed_something_else_than_it_committed_to_is_found_out(
    tmp_path: Path, keys: dict[str, str], sealed: bytes | None
) -> None:
    """Only the auditor can see it: the log itself is in order."""
    auditors = [auditor_key(public(printed)) for printed in keys.values()]

    async def record() -> None:
        log = SignedLog(Audit(directory=str(tmp_path / "audit")), clock=SystemClock(), metrics=Metrics())
        sealer = Sealer(auditors, origin=log.origin, random=os.urandom)
        said = Content(salt=bytes(32), data=b'{"messages":[]}')
        others = [Content(salt=bytes(32), data=sealed)] if sealed is not None else []
        ciphertext = sealer.seal(others, batch="b1", now_s=0)
        leaf = Opened(
            at_ms=1, answer="a1", holder="h", accounts=(), tenant="t", model="m", route="/", seed=1, request_bytes=15,
            content=commitment(said),
        )  # fmt: skip
        end = Sealed(at_ms=1, batch="b1", sha256=sha256(ciphertext).hexdigest(), bytes=len(ciphertext))
        started = Started(at_ms=1, holder="h", version="1", policy="p", codes="c", boot_id="b")
        await log.append_batch(Batch(b"\n".join(map(msgspec.json.encode, (started, leaf, end))), ciphertext))
        await log.close()

    asyncio.run(record())
    directory = str(tmp_path / "audit")
    assert weir("audit", "verify", directory).returncode == 0
    done = weir("audit", "show", directory, "a1", "--key", str(tmp_path / "anna.key"))
    assert done.returncode == 1
    assert "00000000.log" in done.stderr
    said = "is not what the record commits to" if sealed is not None else "0 contents were sealed for 1 records"
    assert said in done.stderr
    assert "another thing" not in done.stdout
