"""Private keys in files: for their owners alone, never overwritten, and never quoted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gateway.audit.sealing import SALT_BYTES, Content, Sealer, unseal
from gateway.key_files import KeyFileError, make_auditor, make_signer, read_auditor, read_signer
from policy.public_key import auditor_key, signer_key


def test_what_is_sealed_to_a_key_in_a_policy_opens_with_its_file(tmp_path: Path) -> None:
    lines = [make_auditor("anna", "x25519", tmp_path / "a"), make_auditor("boris", "xwing", tmp_path / "b")]
    contents = [Content(salt=bytes(SALT_BYTES), data=b"said")]
    blob = Sealer([auditor_key(line) for line in lines], origin="o", random=os.urandom).seal(
        contents, batch="1", now_s=0.0
    )
    for name in ("a", "b"):
        assert unseal(blob, read_auditor(tmp_path / name), origin="o", batch="1") == contents


def test_a_signers_file_holds_the_key_that_the_policy_names(tmp_path: Path) -> None:
    line = make_signer("anna", tmp_path / "a")
    assert signer_key(line).raw == read_signer(tmp_path / "a").public_key().public_bytes_raw()


def test_only_its_owner_may_read_it_and_nobody_overwrites_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    make_signer("anna", path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(KeyFileError, match="there is a file already"):
        make_auditor("anna", "x25519", path)
    assert path.read_bytes() == before
    with pytest.raises(KeyFileError, match="No such file"):
        make_signer("anna", tmp_path / "none" / "a")


def test_what_is_no_such_key_is_refused_in_words_that_quote_none(tmp_path: Path) -> None:
    make_signer("anna", tmp_path / "signer")
    make_auditor("anna", "x25519", tmp_path / "auditor")
    secret = (tmp_path / "auditor").read_text()
    key = secret.strip().rpartition(":")[2]
    cases = {
        "cut": (secret.strip()[:-8], read_auditor, "cut or mistyped"),
        "odd": (secret.strip()[:-3] + "\n", read_auditor, "cut or mistyped"),
        "two": (secret + secret, read_auditor, "not the private key of a weir auditor"),
        "text": ("hello", read_signer, "not the private key of a weir signer"),
        "other": (secret.replace("x25519", "ed25519"), read_auditor, "cut or mistyped"),
        "swapped": (secret.replace("auditor", "signer"), read_signer, "cut or mistyped"),
    }
    for name, (text, read, reason) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(KeyFileError, match=reason) as refusal:
            read(tmp_path / name)
        assert key[:8] not in str(refusal.value)
    for name, read in (("signer", read_auditor), ("auditor", read_signer), ("none", read_auditor)):
        with pytest.raises(KeyFileError):
            read(tmp_path / name)
