"""Notes as C2SP has them: the published examples verify, and whatever is not exactly a note is refused."""

from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit.note import (
    COSIGNATURE,
    NOTE_BYTES_MAX,
    SIGNATURES_MAX,
    BadNote,
    Checkpoint,
    Note,
    Signature,
    Signer,
    Verifier,
    cosigned,
    signatures,
)
from gateway.audit.tree import EMPTY_ROOT

# golang.org/x/mod/sumdb/note, note_test.go
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ENOCH_VKEY = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH_LINE = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
# C2SP signed-note, "Verifier keys"
C2SP_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
C2SP_NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
# C2SP tlog-cosignature: a checkpoint with a cosignature
C2SP_CHECKPOINT = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 "
    "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)
PETER, ENOCH = Verifier.parse(PETER_VKEY), Verifier.parse(ENOCH_VKEY)


def note(*lines: str, text: str = TEXT) -> Note:
    return Note.parse((text + "\n" + "".join(lines)).encode())


def test_the_example_of_the_specification_verifies():
    example = Note.parse(C2SP_NOTE.encode())
    assert example.verified([Verifier.parse(C2SP_VKEY)]) == example.signatures
    assert example.text == "This is an example message.\n"
    assert example.encode() == C2SP_NOTE.encode()


def test_signing_makes_the_bytes_that_gos_note_package_makes():
    signed = Note(text=TEXT, signatures=(Signer.parse(PETER_SKEY).sign(TEXT),))
    assert signed.encode().decode() == f"{TEXT}\n{PETER_LINE}"


def test_keys_are_written_as_they_were_read():
    assert Signer.parse(PETER_SKEY).skey() == PETER_SKEY
    assert str(Signer.parse(PETER_SKEY).verifier) == PETER_VKEY
    assert str(PETER) == PETER_VKEY
    assert PETER_SKEY[-10:] not in repr(Signer.parse(PETER_SKEY)), "a private key is in no log and no traceback"


@pytest.mark.parametrize(("parse", "key"), [(Verifier.parse, PETER_VKEY), (Signer.parse, PETER_SKEY)])
def test_no_part_of_a_key_and_no_key_with_a_changed_letter_is_accepted(parse, key):
    for start in range(len(key) + 1):
        for end in range(start, len(key) + 1):
            if (start, end) != (0, len(key)):
                with pytest.raises(BadNote):
                    parse(key[start:end])
    for place in range(len(key)):
        with pytest.raises(BadNote):
            parse(key[:place] + chr(ord(key[place]) + 1) + key[place + 1 :])


@pytest.mark.parametrize(
    "vkey",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",  # length, with adjusted id
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",  # kind, with adjusted id
        PETER_VKEY.replace("c74f20a3", "C74F20A3"),
        "",
    ],
)
def test_keys_of_other_kinds_and_lengths_are_refused(vkey):
    with pytest.raises(BadNote):
        Verifier.parse(vkey)


def test_a_cosigners_key_signs_nothing_here():
    vkey = Verifier(name="w", public_key=PETER.public_key, kind=COSIGNATURE)
    with pytest.raises(BadNote):
        Signer.parse(f"PRIVATE+KEY+{vkey}")


def test_signatures_by_unknown_keys_mean_nothing():
    both = note(PETER_LINE, ENOCH_LINE)
    assert both.verified([PETER]) == both.signatures[:1]
    assert both.verified([ENOCH]) == both.signatures[1:]
    assert both.verified([PETER, ENOCH]) == both.signatures
    for verifiers in ([], [Verifier.parse(C2SP_VKEY)]):
        with pytest.raises(BadNote, match="not signed by"):
            both.verified(verifiers)


@pytest.mark.parametrize(
    "namesake",
    [
        PETER_LINE.replace("PeterNeumann", "CarmenSandiego"),  # same id
        PETER_LINE.replace("x08g", "xxxx"),  # same name
    ],
)
def test_a_namesake_of_a_known_key_is_unknown(namesake):
    with pytest.raises(BadNote, match="not signed by"):
        note(namesake).verified([PETER])
    assert note(namesake, PETER_LINE).verified([PETER])


def test_a_false_signature_by_a_known_key_spoils_the_note():
    for bit in range(32, 68 * 8):
        false = bytearray(b64decode(PETER_LINE.split()[2]))
        false[bit // 8] ^= 1 << bit % 8
        line = f"— PeterNeumann {b64encode(false).decode()}\n"
        with pytest.raises(BadNote, match="false"):
            note(line, ENOCH_LINE).verified([PETER, ENOCH])
    with pytest.raises(BadNote, match="false"):
        note(PETER_LINE, text=TEXT.replace("your", "Your")).verified([PETER])
    with pytest.raises(BadNote, match="false"):
        note(PETER_LINE[:60] + "ABCD" + PETER_LINE[60:]).verified([PETER])


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        f"{TEXT}\n".encode(),
        f"{TEXT}\n{PETER_LINE[:-1]}".encode(),
        f"\x01{TEXT}\n{PETER_LINE}".encode(),
        f"{TEXT}\n{PETER_LINE}".replace("\n", "\r\n").encode(),
        b"\xff" + f"{TEXT}\n{PETER_LINE}".encode(),
        f"{TEXT}\n— Bad Name x08go/ZJkuBS9UG/SffcvA==\n".encode(),
        f"{TEXT}\n— Bad+Name x08go/ZJkuBS9UG/SffcvA==\n".encode(),
        f"{TEXT}\n—  x08go/ZJkuBS9UG/SffcvA==\n".encode(),
        f"{TEXT}\n- Name x08go/ZJkuBS9UG/SffcvA==\n".encode(),
        f"{TEXT}\n— Name\n".encode(),
        f"{TEXT}\n— Name x08gow==\n".encode(),  # a key id and nothing
        f"{TEXT}\n— Name x08go/ZJkuBS9UG/SffcvB==\n".encode(),  # bits that mean nothing
        f"{TEXT}\n— Name x08go_ZJkuBS9UG_SffcvA==\n".encode(),
        f"{TEXT}\n{PETER_LINE}Unexpected line.\n".encode(),
        f"{TEXT}\n{PETER_LINE * (SIGNATURES_MAX + 1)}".encode(),
        f"{'a' * NOTE_BYTES_MAX}\n\n{PETER_LINE}".encode(),
        b"",
    ],
)
def test_whatever_is_not_exactly_a_note_is_refused(data):
    with pytest.raises(BadNote):
        Note.parse(data)


def test_as_many_signatures_as_the_specification_wants_are_accepted():
    large = f"— pq {b64encode(bytes(5000)).decode()}\n"
    assert note(*[large] * 15, PETER_LINE).verified([PETER])


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 200))
def test_garbage_is_refused_with_the_one_error(garbage, start, length):
    whole = f"{TEXT}\n{PETER_LINE}".encode()
    data = whole[:start] + garbage + whole[start + length :]
    try:
        parsed = Note.parse(data)
    except BadNote:
        return
    assert parsed.encode() == data, "a note has one reading, and one writing"


def test_the_checkpoint_of_the_specification_is_read_and_written():
    parsed = Note.parse(C2SP_CHECKPOINT.encode())
    checkpoint = Checkpoint.parse(parsed.text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.root == b64decode("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
    assert checkpoint.text() == parsed.text
    assert parsed.signatures[1].time_s() == 1679315147, "the time that the specification spells out"


def test_extension_lines_of_others_are_kept():
    text = f"o\n0\n{b64encode(EMPTY_ROOT).decode()}\nmore\nand more\n"
    assert Checkpoint.parse(text).extensions == ("more", "and more")
    assert Checkpoint.parse(text).text() == text


ROOT = b64encode(EMPTY_ROOT).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n",
        "o\n1\n",
        f"o\n1\n{ROOT}",
        f"\n1\n{ROOT}\n",
        f"o\n01\n{ROOT}\n",
        f"o\n-1\n{ROOT}\n",
        f"o\n+1\n{ROOT}\n",
        f"o\n１\n{ROOT}\n",
        f"o\n1_0\n{ROOT}\n",
        f"o\n{2**63}\n{ROOT}\n",
        f"o\n1\n{ROOT[4:]}\n",
        f"o\n1\n{ROOT}\n\nx\n",
        f"o\n1\n{ROOT}\n\n",
    ],
)
def test_whatever_is_not_exactly_a_checkpoint_is_refused(text):
    with pytest.raises(BadNote):
        Checkpoint.parse(text)


@pytest.mark.parametrize("change", [{"origin": "a\nb"}, {"size": -1}, {"root": b"short"}, {"extensions": ("a\nb",)}])
def test_a_checkpoint_that_would_read_otherwise_cannot_be_built(change):
    with pytest.raises(BadNote):
        Checkpoint(**{"origin": "o", "size": 1, "root": EMPTY_ROOT, **change})


WITNESS = Signer(name="witness.example/w1", seed=bytes(range(32)))
COSIGNER = Verifier(name=WITNESS.name, public_key=WITNESS.verifier.public_key, kind=COSIGNATURE)
CHECKPOINT = Checkpoint(origin="o", size=0, root=EMPTY_ROOT)


def cosignature(time_s: int, text: str) -> Signature:
    made = WITNESS._key().sign(f"cosignature/v1\ntime {time_s}\n{text}".encode())
    return Signature(name=WITNESS.name, key_id=COSIGNER.key_id, made=time_s.to_bytes(8, "big") + made)


def test_a_cosignature_says_what_and_when():
    text = CHECKPOINT.text()
    good = cosignature(1679315147, text)
    assert COSIGNER.verify(text, good)
    assert good.time_s() == 1679315147
    assert cosigned(text, 1679315147).startswith(b"cosignature/v1\ntime 1679315147\no\n0\n")
    assert not COSIGNER.verify(text, Signature(name=good.name, key_id=good.key_id, made=bytes(8) + good.made[8:]))
    assert not COSIGNER.verify(text + "more\n", good), "it covers extension lines"
    for bit in range(72 * 8):
        false = bytearray(good.made)
        false[bit // 8] ^= 1 << bit % 8
        assert not COSIGNER.verify(text, Signature(name=good.name, key_id=good.key_id, made=bytes(false)))


@pytest.mark.parametrize("time_s", [0, 2**63, 2**64 - 1])
def test_a_cosignature_has_a_time(time_s):
    assert not COSIGNER.verify(CHECKPOINT.text(), cosignature(time_s, CHECKPOINT.text()))


def test_one_key_for_two_kinds_of_signature_has_two_ids():
    assert COSIGNER.key_id != WITNESS.verifier.key_id
    signed = CHECKPOINT.signed([WITNESS])
    with pytest.raises(BadNote, match="not signed by"):
        signed.verified([COSIGNER])


def test_signature_lines_alone_are_read_as_a_witness_sends_them():
    assert [signature.name for signature in signatures(PETER_LINE + ENOCH_LINE)] == ["PeterNeumann", "EnochRoot"]
    for lines in ("", "\n", PETER_LINE + "\n", PETER_LINE[:-1]):
        with pytest.raises(BadNote):
            signatures(lines)
