"""tlog-policy files: what they say, and every way in which they can be wrong."""

import base64

import pytest

from gateway.audit.note import COSIGNATURE, Checkpoint, Note, Signer, Verifier
from gateway.audit.quorum import AHEAD_S_MAX, LINES_MAX, POLICY_BYTES_MAX, BadQuorum, parse
from tests.gateway.audit.witnesses import CarefulWitness

NOW = 1_000_000
LOG = Signer(name="example.com/log", seed=bytes(32))
TEXT = Checkpoint(origin=LOG.name, size=7, root=bytes(32)).text()
ALL = {name: CarefulWitness(f"{name}.example/w") for name in ("X1", "X2", "X3", "Y1", "Y2", "Y3")}
WITNESSES = "".join(f"witness {name} {w.verifier} https://{name}.example/\n" for name, w in ALL.items())
EXAMPLE = f"""\
# the example of the specification
log {LOG.verifier}
{WITNESSES}
group X-witnesses 2 X1 X2 X3
group Y-witnesses any Y1 Y2 Y3
\t group  X-and-Y\tall X-witnesses Y-witnesses \t
quorum X-and-Y
"""


def note(**times: int) -> Note:
    """With cosignatures by these, at these times."""
    return Note(
        text=TEXT,
        signatures=(LOG.sign(TEXT), *(ALL[name].cosignature(TEXT, at_s=time_s) for name, time_s in times.items())),
    )


def key(number: int, *, kind: int = COSIGNATURE) -> Verifier:
    return Verifier(name=f"k{number}", public_key=number.to_bytes(32, "big"), kind=kind)


def mistake(text: str | bytes) -> str:
    with pytest.raises(BadQuorum) as found:
        parse(text.encode() if isinstance(text, str) else text)
    return str(found.value)


@pytest.mark.parametrize(
    ("times", "since_s"),
    [
        ({}, None),
        ({"X1": NOW, "X2": NOW}, None),
        ({"X1": NOW, "Y1": NOW, "Y2": NOW, "Y3": NOW}, None),
        ({"X1": NOW, "X2": NOW, "Y2": NOW}, NOW),
        ({"X1": NOW - 5, "X2": NOW - 9, "Y2": NOW}, NOW - 9),
        ({"X1": NOW - 5, "X2": NOW - 9, "X3": NOW, "Y2": NOW}, NOW - 5),
        ({"X1": NOW, "X2": NOW, "Y1": NOW - 20, "Y2": NOW - 10}, NOW - 10),
        ({"X1": NOW, "X2": NOW, "Y1": NOW + AHEAD_S_MAX}, NOW),
        ({"X1": NOW, "X2": NOW, "Y1": NOW + AHEAD_S_MAX + 1}, None),
    ],
)
def test_a_quorum_is_as_old_as_the_oldest_of_the_newest_that_it_takes(times, since_s):
    assert parse(EXAMPLE.encode()).since_s(note(**times), now_s=NOW) == since_s


def test_a_false_cosignature_is_none():
    other = Checkpoint(origin=LOG.name, size=8, root=bytes(32)).text()
    forged = Note(text=TEXT, signatures=(ALL["X1"].cosignature(other, at_s=NOW),))
    quorum = parse(f"{WITNESSES}quorum X1".encode())
    assert quorum.since_s(forged, now_s=NOW) is None
    assert quorum.since_s(note(X1=NOW), now_s=NOW) == NOW


def test_of_several_cosignatures_of_one_witness_the_newest_counts_once():
    twice = Note(text=TEXT, signatures=(*note(X1=NOW - 7).signatures, *note(X1=NOW - 3).signatures))
    assert parse(f"{WITNESSES}group g 2 X1 X2\nquorum g".encode()).since_s(twice, now_s=NOW) is None
    assert parse(f"{WITNESSES}quorum X1".encode()).since_s(twice, now_s=NOW) == NOW - 3


def test_the_file_says_where_each_is_asked():
    quorum = parse(EXAMPLE.encode())
    assert [(w.name, w.url) for w in quorum.witnesses.values()] == [(n, f"https://{n}.example/") for n in ALL]
    assert quorum.logs == (LOG.verifier,)


def test_comments_may_be_in_any_encoding_and_white_space_other_than_ascii_is_part_of_a_name():
    witness = ALL["X1"].verifier
    quorum = parse(b" \t# caf\xe9\n" + f"witness a\u00a0b {witness} http://w:1/p\nquorum a\u00a0b".encode())
    assert list(quorum.witnesses) == ["a\u00a0b"]


def test_as_many_as_the_specification_asks_for_are_taken_and_no_more():
    logs = [f"log {key(n, kind=1)}" for n in range(LINES_MAX + 1)]
    witnesses = [f"witness w{n} {key(n)} http://w" for n in range(LINES_MAX + 1)]
    groups = [f"group g{n} any {f'w{n}' if n == 0 else f'g{n - 1}'}" for n in range(LINES_MAX + 1)]
    whole = [*logs[:-1], *witnesses[:-1], *groups[:-1], f"quorum g{LINES_MAX - 1}"]
    signed = Note(text=TEXT, signatures=())
    assert parse("\n".join(whole).encode()).since_s(signed, now_s=NOW) is None
    for kind, lines in (
        ("logs", logs),
        ("witnesses", witnesses),
        ("groups", ["witness w0 " + str(key(0)) + " http://w", *groups]),
    ):
        assert f"more than {LINES_MAX} {kind}" in mistake("\n".join(lines))


X1, X2 = ALL["X1"].verifier, ALL["X2"].verifier
W = f"witness a {X1} http://a\nwitness b {X2} http://b\n"
WRONG_KEY = f"x+00000000+{base64.b64encode(bytes([COSIGNATURE]) + bytes(32)).decode()}"

MISTAKES = [
    ("", "no line says: quorum <name>"),
    ("# nothing\n\n", "no line says: quorum <name>"),
    (W, "no line says: quorum <name>"),
    ("quorum none", "line 1: a quorum of nobody witnesses nothing"),
    (W + "quorum a\nquorum b", "line 4: a second quorum"),
    (W + "quorum", "line 3: write: quorum <name>"),
    (W + "quorum a b", "line 3: write: quorum <name>"),
    ("quorum a\n" + W, "line 1: no line above defines a"),
    (W + "group g any a c\nquorum g", "line 3: no line above defines c"),
    (W + "group g any g\nquorum g", "line 3: no line above defines g"),
    (W + "group a any b", "line 3: the name a is taken"),
    (W + "group none any b", "line 3: the name none is taken"),
    (W + "group g any none", "line 3: no line above defines none"),
    (W + "group g any a a", "line 3: a is a member of a group already"),
    (W + "group g any a\ngroup h any a", "line 4: a is a member of a group already"),
    (W + "group g any", "line 3: write: group <name>"),
    (W + "group g 0 a", "line 3: 0 is not all, any or a number from 1 to 1"),
    (W + "group g 3 a b", "line 3: 3 is not all, any or a number from 1 to 2"),
    (W + "group g 01 a b", "line 3: 01 is not"),
    (W + "group g most a b", "line 3: most is not"),
    (W + f"witness a {key(9)} http://c", "line 3: the name a is taken"),
    (W + f"witness none {key(9)} http://c", "line 3: the name none is taken"),
    (W + f"witness c {X1} http://c", "line 3: this key stands here already"),
    (f"witness c {X1}", "line 1: c cannot be asked: add its submission prefix"),
    (f"witness c {X1} ftp://c", "line 1: c cannot be asked"),
    (f"witness c {X1} http://c d", "line 1: write: witness"),
    ("witness c", "line 1: write: witness"),
    (f"witness c {LOG.verifier} http://c", "line 1: key example.com/log: not a cosigner's key"),
    (f"witness c {WRONG_KEY} http://c", "line 1: key x: its id is not the one of its bytes"),
    ("witness c hello http://c", "line 1: a key is <name>+<key id>+<base64>"),
    (f"log {X1}", "line 1: key X1.example/w: not a log's key"),
    (f"log {LOG.verifier}\nlog {LOG.verifier}", "line 2: this key stands here already"),
    ("log", "line 1: write: log"),
    ("log a b c", "line 1: write: log"),
    ("# a\n\nhello there", "line 3: hello is not known; a line begins with log, witness, group, quorum or #"),
    ("log\x00", "line 1: a control character"),
    ("# \r\n", "line 1: a control character"),
    (b"quorum \xff", "line 1: not UTF-8"),
    ("#" * (POLICY_BYTES_MAX + 1), f"over {POLICY_BYTES_MAX} bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_line(text, message):
    assert mistake(text).startswith(message)
