"""A policy document becomes rules, or every mistake in it at once, each with line, column and what to write."""

import dataclasses
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from policy import rules
from policy.address import address, collide, upstream
from policy.document import json_schema, parse
from policy.mistakes import Mistake, Mistakes, quoted, spelled
from policy.quantity import duration_s, window
from policy.rules import (
    MemoryLedger,
    ModelBudget,
    Policy,
    PostgresLedger,
    SqliteLedger,
    TcpAddress,
    TenantBudget,
    Timeouts,
    UnixAddress,
    WeightsSource,
    Window,
)

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "deploy" / "policies").glob("*.yaml"))
DIGEST = "ab" * 32

# Templates for one-line changes: each test replaces one value and looks at the mistake it makes.
NO_PASSWORD = "a password does not belong in a policy; write it into ~/.pgpass, or into PGPASSWORD"
NO_ADDRESS = "not a database's address; write postgresql://user@host/database, or several host:port with commas"

SMALL = f"""\
listen: 127.0.0.1:8080
admin: 127.0.0.1:9090
models:
  demo:
    upstream: http://127.0.0.1:8001
    weights: {{parameters: 135M}}
    theft_compression: 4
    budgets:
      - {{window: 1d, time_to_theft: 30d}}
tenants:
  acme:
    keys: [sha256:{DIGEST}]
    models: [demo]
"""


def mistakes(text: str) -> list[str]:
    result = parse(text, name="weir.yaml")
    assert isinstance(result, Mistakes), result
    return result.render().splitlines()


def policy(text: str) -> Policy:
    result = parse(text, name="weir.yaml")
    assert isinstance(result, Policy), result.render()
    return result


def with_model(lines: str) -> str:
    return SMALL.replace("    budgets:\n", f"    {lines}\n    budgets:\n")


def with_tenant(lines: str) -> str:
    return SMALL + f"    {lines}\n"


def test_the_smallest_document_gets_the_documented_defaults():
    small = policy(SMALL)
    assert small.listen == TcpAddress(host="127.0.0.1", port=8080)
    assert small.release == rules.Release(schedule="flow", tick_s=0.02, quantum_bytes=16)
    assert small.meters == ("raw", "zstd")
    assert small.audit == rules.Audit(directory="./var/audit")
    assert small.ledger == SqliteLedger(path="./var/ledger.db")
    demo, acme = small.models["demo"], small.tenants["acme"]
    assert demo.weights == WeightsSource(parameters=135_000_000)
    assert (demo.guarantee, demo.usage, demo.record_token_ids) == ("absolute", "charge", False)
    assert (demo.reasoning, demo.embeddings, demo.dimensions) == ("drop", "refuse", None)
    assert demo.prefix_cache_salt is False
    assert (demo.answer_tokens_max, demo.answer_tokens_default) == (4096, 512)
    assert demo.timeouts == Timeouts(connect_s=5.0, first_byte_s=60.0, idle_s=30.0, total_s=600.0)
    assert demo.budgets == (ModelBudget(window=Window(name="1d", duration_s=86_400), time_to_theft_s=30 * 86_400),)
    assert acme == rules.Tenant(name="acme", key_digests=frozenset({DIGEST}), models=frozenset({"demo"}))
    assert (acme.share, acme.budgets, acme.steering, acme.streams_max) == (None, (), False, 64)


@pytest.mark.parametrize(
    ("text", "url", "standbys"),
    [
        ("postgresql://weir@db.internal/weir", "postgresql://weir@db.internal/weir", 0),
        ("postgresql://weir@a:5432,b:5433/weir?target_session_attrs=read-write&standbys=2&sslmode=verify-full",
         "postgresql://weir@a:5432,b:5433/weir?target_session_attrs=read-write&sslmode=verify-full", 2),
        ("postgresql://[::1]:5432/weir?standbys=1", "postgresql://[::1]:5432/weir", 1),
        ("postgresql://weir@/weir?host=/run/postgresql", "postgresql://weir@/weir?host=/run/postgresql", 0),
    ],
)  # fmt: skip
def test_a_postgresql_ledger_is_its_address_without_what_only_weir_reads(text, url, standbys):
    assert policy(SMALL + f"ledger: {text}\n").ledger == PostgresLedger(url=url, standbys=standbys)


def test_every_field_arrives_in_its_unit():
    full = policy(
        f"""\
listen: unix:/run/weir.sock
admin: "[::1]:9090"
models:
  demo:
    upstream: unix:/run/backend.sock
    weights: {{file: ./model.safetensors}}
    theft_compression: 6.5
    guarantee: absolute
    budgets:
      - {{window: 1h, bytes: 20MiB}}
      - {{window: lifetime, fraction: 12.5%}}
    usage: drop
    reasoning: release
    embeddings: binary
    dimensions: 384
    record_token_ids: true
    prefix_cache_salt: true
    answer_tokens_max: 100
    timeouts: {{connect: 500ms, first_byte: 1m, idle: 2s, total: 1h}}
tenants:
  one: {{keys: ["sha256:{"0" * 64}"], models: [demo], share: 40%, steering: true, streams_max: 2}}
  two:
    keys: [sha256:{DIGEST.upper()}]
    models: [demo]
    budget: [{{window: 24h, bytes: 1kB}}, {{window: lifetime, bytes: 2MB}}]
  three: {{keys: ["sha256:{"1" * 64}"], models: [demo], budget: {{window: 7d, bytes: 16B}}}}
release: {{schedule: whole, tick: 5ms, quantum: 1024B}}
meters: [raw]
audit: {{directory: /var/log/weir}}
ledger: memory
"""
    )
    demo, tenants = full.models["demo"], full.tenants
    assert (full.listen, full.admin) == (UnixAddress(path="/run/weir.sock"), TcpAddress(host="::1", port=9090))
    assert (demo.upstream, demo.weights.file) == ("unix:/run/backend.sock", "./model.safetensors")
    assert demo.theft_compression == Fraction(13, 2)
    assert [(budget.window.name, budget.fraction, budget.bits) for budget in demo.budgets] == [
        ("lifetime", Fraction(1, 8), None),
        ("1h", None, 8 * 20 * 2**20),
    ]
    assert (demo.usage, demo.record_token_ids, demo.prefix_cache_salt) == ("drop", True, True)
    assert (demo.reasoning, demo.embeddings, demo.dimensions) == ("release", "binary", 384)
    assert (demo.answer_tokens_max, demo.answer_tokens_default) == (100, 100)
    assert demo.timeouts == Timeouts(connect_s=0.5, first_byte_s=60.0, idle_s=2.0, total_s=3600.0)
    assert (tenants["one"].share, tenants["one"].steering, tenants["one"].streams_max) == (Fraction(2, 5), True, 2)
    assert tenants["two"].key_digests == {DIGEST}
    assert tenants["two"].budgets == (
        TenantBudget(window=Window(name="lifetime", duration_s=None), bits=16_000_000),
        TenantBudget(window=Window(name="1d", duration_s=86_400), bits=8000),
    )
    assert tenants["three"].budgets == (TenantBudget(window=Window(name="7d", duration_s=604_800), bits=128),)
    assert full.release == rules.Release(schedule="whole", tick_s=0.005, quantum_bytes=1024)
    assert (full.meters, full.audit.directory, full.ledger) == (("raw",), "/var/log/weir", MemoryLedger())


def test_witnesses_are_a_file_and_a_time_and_nothing_changes_for_who_has_none():
    none = policy(SMALL)
    named = policy(SMALL + "audit: {witnesses: {policy: w.txt}}\n")
    assert none.audit.witnesses is None
    assert named.audit.witnesses == rules.WitnessRule(policy="w.txt", within_s=3600)
    assert policy(SMALL + "audit: {witnesses: {policy: w.txt, within: 60m}}\n").digest == named.digest
    assert len({none.digest, named.digest, policy(SMALL + "audit: {witnesses: {policy: v.txt}}\n").digest}) == 3


# One mistake at a time: what is written, and the whole line that answers it.

ONE_MISTAKE = [
    ("listen: 127.0.0.1:8080", "listen: localhost", "1:9: listen: 'localhost' is not an address; write for example"),
    ("listen: 127.0.0.1:8080", "listen: 10.0.1:80", "1:9: listen: '10.0.1:80' is not an address"),
    ("listen: 127.0.0.1:8080", "listen: a:99999", "1:9: listen: 'a:99999' is not an address"),
    ("listen: 127.0.0.1:8080", "listen: unix:relative", "1:9: listen: 'unix:relative' is not an address"),
    ("listen: 127.0.0.1:8080", "listen: [::1]:80", "1:10: this is not YAML: expected the node content, but found ':'"),
    ("listen: 127.0.0.1:8080", "listen: 12:30:00", "1:9: listen: '12:30:00' is a number to some YAML readers only"),
    ("listen: 127.0.0.1:8080", "listen: 2026-01-01", "1:9: listen: '2026-01-01' means something else to some YAML"),
    ("listen: 127.0.0.1:8080", "listen: =", "1:9: listen: '=' means something else to some YAML"),
    ("listen: 127.0.0.1:8080", "listen:", "1:8: listen: has no value"),
    ("listen: 127.0.0.1:8080", "listen: {a: b}", "1:9: listen: must be a single value, not a list or a mapping"),
    ("listen: 127.0.0.1:8080", "listen: 0.0.0.0:9090", "2:8: admin: must not be where `listen` is"),
    ("listen: 127.0.0.1:8080\n", "", "1:1: listen: is missing"),
    ("http://127.0.0.1:8001", "https://a:1", "5:15: models.demo.upstream: 'https://a:1' is not a backend; write http"),
    ("http://127.0.0.1:8001", "http://a:1/v1", "5:15: models.demo.upstream: 'http://a:1/v1' is not a backend"),
    ("http://127.0.0.1:8001", "http://u@a:1", "5:15: models.demo.upstream: 'http://u@a:1' is not a backend"),
    ("http://127.0.0.1:8001", "http://a", "5:15: models.demo.upstream: 'http://a' is not a backend"),
    ("http://127.0.0.1:8001", "http://a:0", "5:15: models.demo.upstream: 'http://a:0' is not a backend"),
    ("http://127.0.0.1:8001", "http://unix:/a", "5:15: models.demo.upstream: 'http://unix:/a' is not a backend"),
    ("{parameters: 135M}", "{parameters: lots}", "6:27: models.demo.weights.parameters: 'lots' is not a number of param"),
    ("{parameters: 135M}", "{parameters: 0}", "6:27: models.demo.weights.parameters: '0' must be a whole number of"),
    ("{parameters: 135M}", "{parameters: 1_000}", "6:27: models.demo.weights.parameters: '1_000' is a number to some"),
    ("{parameters: 135M}", "{}", "6:14: models.demo.weights: set either file or parameters"),
    ("{parameters: 135M}", "{parameters: 1, file: a}", "6:14: models.demo.weights: set either file or parameters"),
    ("{parameters: 135M}", "{file: 12}", "6:21: models.demo.weights.file: '12' is a number here; write it in quotes"),
    ("{parameters: 135M}", '{file: ""}', "6:21: models.demo.weights.file: must have 1 to 4096 characters"),
    ("{parameters: 135M}", '{file: "a\\nb"}', "6:21: models.demo.weights.file: the text holds a line break"),
    ("compression: 4", "compression: 0.5", "7:24: models.demo.theft_compression: '0.5' must be from 1"),
    ("compression: 4", "compression: -4", "7:24: models.demo.theft_compression: '-4' is not a ratio; write"),
    ("1d, time_to_theft: 30d", "1d", "9:9: models.demo.budgets[0]: set exactly one of fraction, time_to_theft and bytes"),
    ("30d}", "30d, bytes: 1B}", "9:9: models.demo.budgets[0]: set exactly one of fraction, time_to_theft and bytes"),
    ("30d}", "soon}", "9:37: models.demo.budgets[0].time_to_theft: 'soon' is not a duration; write for example 20ms"),
    ("30d}", "0d}", "9:37: models.demo.budgets[0].time_to_theft: '0d' must be longer than nothing"),
    ("30d}", "1.5ms}", "9:37: models.demo.budgets[0].time_to_theft: '1.5ms' must be whole seconds"),
    ("30d}", "101y}", "9:37: models.demo.budgets[0].time_to_theft: '101y' must be at most 100y"),
    ("30d}", "1h}", "9:37: models.demo.budgets[0].time_to_theft: is shorter than the window of 1d, which would let"),
    ("window: 1d", "window: lifetime", "9:43: models.demo.budgets[0].time_to_theft: a lifetime has no rate"),
    ("window: 1d", "window: daily", "9:18: models.demo.budgets[0].window: 'daily' is not a window; write lifetime, 1d"),
    ("30d}", "30d}\n      - {window: 24h, bytes: 1B}", "10:18: models.demo.budgets[1].window: there is already a budget"),
    ("time_to_theft: 30d", "bytes: 20", "9:29: models.demo.budgets[0].bytes: '20' is not a number of bytes; write for"),
    ("time_to_theft: 30d", "bytes: 0.5B", "9:29: models.demo.budgets[0].bytes: '0.5B' must be whole bytes"),
    ("time_to_theft: 30d", "fraction: forty", "9:32: models.demo.budgets[0].fraction: 'forty' is not a percentage;"),
    ("time_to_theft: 30d", "fraction: 101%", "9:32: models.demo.budgets[0].fraction: '101%' must be more than 0%"),
    ("      - {window: 1d, time_to_theft: 30d}", "      []", "9:7: models.demo.budgets: must not be empty"),
    ("{window: 1d, time_to_theft: 30d}", "soon", "9:9: models.demo.budgets[0]: must be a mapping, that is, lines"),
    ("      - {window: 1d, time_to_theft: 30d}", "      no", "9:7: models.demo.budgets: 'no' is a boolean to some"),
    ("      - {window: 1d, time_to_theft: 30d}", "      10%", "9:7: models.demo.budgets: must be a list"),
    ("  demo:\n", "  no:\n", "4:3: models: the key 'no' is not text to every YAML reader; write it in quotes"),
    ("  demo:\n", "  [demo]:\n", "4:3: models: a key must be text"),
    ("  demo:\n", '  "a\\tb":\n', "4:3: models: a key holds a line break or a control character"),
    ("  demo:\n", "  -demo:\n", "4:3: models.-demo: '-demo' is not a name; write up to 64 letters"),
    ("  demo:\n", "  demo: &it\n", "4:9: anchors (&name) are not used in policies"),
    ("  demo:\n", "  !it demo:\n", "4:3: tags (!it) are not used in policies"),
    ("  demo:\n", "  demo: !it\n", "4:9: tags (!it) are not used in policies"),
    ("  acme:\n", "  acme: {}\n  acme:\n", "12:3: tenants.acme: this key is already set in line 11"),
    ("  acme:\n", "  other:\n", "11:3: tenants.other: 'other' is reserved: metrics use it"),
    (f"sha256:{DIGEST}", "sk-secret", "12:12: tenants.acme.keys[0]: is not the digest of a key; write sha256: and"),
    (f"sha256:{DIGEST}", "&k [a]", "12:12: anchors (&name) are not used in policies"),
    ("models: [demo]", "models: [dmeo]", "13:14: tenants.acme.models[0]: unknown model 'dmeo'; did you mean 'demo'?"),
    ("models: [demo]", "models: [xyz]", "13:14: tenants.acme.models[0]: unknown model 'xyz'; known here: demo"),
    ("models: [demo]", "models: [1]", "13:14: tenants.acme.models[0]: '1' is a number here; write it in quotes"),
    ("models: [demo]", "models: *it", "13:13: aliases (*name) are not used in policies; write the value out"),
    ("admin: 127", "<<: {a: b}\nadmin: 127", "2:1: merge keys (<<) are not used in policies; write the values out"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "line"), ONE_MISTAKE)
def test_one_mistake_is_answered_by_its_place_and_what_to_write(right, wrong, line):
    assert right in SMALL
    found = mistakes(SMALL.replace(right, wrong, 1))
    assert any(f"weir.yaml:{line}" in one for one in found), found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (with_model("guarantee: black_box"), "8:16: models.demo.guarantee: 'black_box': it needs the replay meter, which is not available in this version; write absolute"),
        (with_model("guarantee: total"), "8:16: models.demo.guarantee: 'total' is not known; write absolute"),
        (with_model("record_token_ids: yes"), "8:23: models.demo.record_token_ids: 'yes' is a boolean to some YAML readers only; write true or false, or quotes if it is text"),
        (with_model('record_token_ids: "true"'), "8:23: models.demo.record_token_ids: 'true' is text here; write true or false"),
        (with_model("reasoning: keep"), "8:16: models.demo.reasoning: 'keep' is not known; write drop or release"),
        (with_model("embeddings: float32"), "8:17: models.demo.embeddings: 'float32' is not known; write refuse or int8 or binary"),
        (with_model("dimensions: 8193"), "8:17: models.demo.dimensions: '8193' is not a whole number from 1 to 8192"),
        (with_model("answer_tokens_max: 0"), "8:24: models.demo.answer_tokens_max: '0' is not a whole number from 1 to 1000000"),
        (with_model("answer_tokens_max: 1.5"), "8:24: models.demo.answer_tokens_max: '1.5' is not a whole number from 1 to 1000000"),
        (with_model("answer_tokens_default: 5000"), "8:28: models.demo.answer_tokens_default: must not be more than answer_tokens_max, 4096"),
        (with_model("timeouts: {connect: 2d}"), "8:25: models.demo.timeouts.connect: '2d' must be at most 1d"),
        (with_model("timeouts: {conect: 2s}"), "8:16: models.demo.timeouts.conect: unknown key 'conect'; did you mean 'connect'?"),
        (with_tenant("budget: {window: 1d, byte: 1B}"), "14:26: tenants.acme.budget.byte: unknown key 'byte'; did you mean 'bytes'?"),
        (with_tenant("budget: [{window: 1d, bytes: 1B}, {window: 1d, bytes: 2B}]"), "14:48: tenants.acme.budget[1].window: there is already a budget for 1d"),
        (with_tenant("budget: [{window: 1d, bites: 1B}]"), "14:27: tenants.acme.budget[0].bites: unknown key 'bites'; did you mean 'bytes'?"),
        (with_tenant("budget: []"), "14:13: tenants.acme.budget: must not be empty"),
        (with_tenant("share: forty"), "14:12: tenants.acme.share: 'forty' is not a percentage; write for example 40%"),
        (with_tenant("steering: maybe"), "14:15: tenants.acme.steering: 'maybe' is text here; write true or false"),
        (SMALL + "  b: {keys: [sha256:" + DIGEST.upper() + "], models: [demo]}\n", "14:14: tenants.b.keys[0]: this key already belongs to tenant 'acme'"),
        (SMALL + "release: {schedule: slow}\n", "14:21: release.schedule: 'slow' is not known; write flow or paced or whole"),
        (SMALL + "release: {tick: 1ms}\n", "14:17: release.tick: '1ms' must be from 5ms to 1s"),
        (SMALL + "release: {quantum: 2kB}\n", "14:20: release.quantum: '2kB' must be from 8B to 1024B"),
        (SMALL + "release: {quantum: 4B}\n", "14:20: release.quantum: '4B' must be from 8B to 1024B"),
        (SMALL + "meters: [raw, replay]\n", "14:15: meters[1]: 'replay': that meter is not available in this version; write raw or zstd or language_model"),
        (SMALL + "meters: [zstd]\n", "14:9: meters: must name raw: every answer is charged raw when it leaves, other meters refund"),
        (SMALL + "meters: [raw, raw]\n", "14:15: meters[1]: 'raw' is already listed"),
        (SMALL + "ledger: redis\n", "14:9: ledger: 'redis' is not a ledger; write sqlite:./var/ledger.db, postgresql://user@host/database or memory"),
        (SMALL + "ledger: sqlite\n", "14:9: ledger: 'sqlite' is not a ledger; write sqlite:./var/ledger.db, postgresql://user@host/database or memory"),
        (SMALL + "ledger: mysql://u:secret@h/d\n", "14:9: ledger: 'mysql' is not a ledger; write sqlite:./var/ledger.db, postgresql://user@host/database or memory"),
        (SMALL + "ledger: postgresql://db\n", f"14:9: ledger: {NO_ADDRESS}"),
        (SMALL + "ledger: postgres://h/db\n", f"14:9: ledger: {NO_ADDRESS}"),
        (SMALL + "ledger: postgresql://h:secret/db\n", f"14:9: ledger: {NO_ADDRESS}"),
        (SMALL + "ledger: postgresql://u:secret@h/db\n", f"14:9: ledger: {NO_PASSWORD}"),
        (SMALL + "ledger: postgres://u:se/cr@et@h/db\n", f"14:9: ledger: {NO_PASSWORD}"),
        (SMALL + "ledger: postgresql://u@h/db?password=secret\n", f"14:9: ledger: {NO_PASSWORD}"),
        (SMALL + "ledger: postgresql://u@h/db?synchronous_commit=off\n", "14:9: ledger: 'synchronous_commit' is not known here; known are standbys, target_session_attrs, sslmode, sslrootcert, sslcert, sslkey, host, passfile"),
        (SMALL + "ledger: postgresql://u@h/db?standbys=some\n", "14:9: ledger: standbys='some' must be from 0 to 9"),
        (SMALL + "audit: {auditor: []}\n", "14:9: audit.auditor: unknown key 'auditor'; did you mean 'auditors'?"),
        (SMALL + "audit: {witnesses: {within: 1h}}\n", "14:20: audit.witnesses.policy: is missing"),
        (SMALL + "audit: {witnesses: {policy: w, within: 100ms}}\n", "14:40: audit.witnesses.within: '100ms' must be whole seconds"),
        (SMALL + "audit:\n", "14:7: audit: must be a mapping, that is, lines of `key: value`"),
        (SMALL + "clients: {}\n", "14:1: clients: unknown key 'clients'; known here: listen, admin, models, tenants, release, meters, dictionary, scorer, audit, licence, ledger"),
        ("", "1:1: the document is empty"),
        ("12", "1:1: must be a mapping, that is, lines of `key: value`"),
        (SMALL + "---\na: b\n", "14:1: a second document begins here; a policy is one document"),
        (SMALL + "\tx: y\n", "14:1: this is not YAML: found character '\\t' that cannot start any token while scanning for the next token"),
        ("[" * 10_000, "1:17: this is not YAML: nested deeper than 16 levels"),
        (SMALL + "a: \x01", "14:4: the character U+0001 is not allowed"),
        ('a: "\\UFFFFFFFF"', "1:7: this is not a character or number that YAML knows"),
        ("#" * (1 << 20) + "\n", "1:1: the document is longer than 1048576 characters"),
        (with_tenant("budget: [" + "{window: 1d, bytes: 1B}, " * 9 + "]"), "14:13: tenants.acme.budget: must have at most 8 entries"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_line(text, line):
    assert f"weir.yaml:{line}" in mistakes(text)


def test_a_misspelled_key_is_reported_beside_the_required_key_it_hides():
    assert mistakes(SMALL.replace("upstream", "upstraem")) == [
        "weir.yaml:5:5: models.demo.upstraem: unknown key 'upstraem'; did you mean 'upstream'?",
        "weir.yaml:5:5: models.demo.upstream: is missing",
    ]


def test_all_mistakes_are_reported_at_once_in_the_order_of_lines():
    text = SMALL.replace("8080", "9090").replace("30d", "soon").replace("[demo]", "[dmeo, no]") + "meters: [zstd]\n"
    assert [line.split(": ")[1] for line in mistakes(text)] == [
        "admin",
        "models.demo.budgets[0].time_to_theft",
        "tenants.acme.models[0]",
        "tenants.acme.models[1]",
        "meters",
    ]


def test_a_wrong_key_is_never_repeated_in_a_message_since_it_may_be_the_secret_itself():
    assert "sk-secret" not in "".join(mistakes(SMALL.replace(f"sha256:{DIGEST}", "sk-secret")))


def test_messages_quote_long_values_cut_and_paths_with_dots_in_quotes():
    assert len(quoted("x" * 1000)) == 62
    assert spelled(("models", "qwen2.5", "budgets", 0)) == 'models."qwen2.5".budgets[0]'
    rendered = Mistakes(name="f", mistakes=(Mistake(line=1, column=2, path="", message="m"),)).render()
    assert rendered == "f:1:2: m"


# The digest.


def test_the_digest_ignores_spelling_order_and_comments():
    spelled_otherwise = f"""
# a comment
tenants: {{"acme": {{models: ["demo"], "keys": ['sha256:{DIGEST.upper()}']}}}}
models:
  demo:
    theft_compression: 4.0
    timeouts: {{connect: 5000ms}}
    weights: {{parameters: 0.135e9}}
    budgets: [{{time_to_theft: 720h, window: 24h}}]
    upstream: "http://127.0.0.1:08001"
meters: [zstd, raw]
admin: 127.0.0.1:9090
listen: "127.0.0.1:8080"
release: {{}}
"""
    assert policy(spelled_otherwise).digest == policy(SMALL).digest


@pytest.mark.parametrize(
    "change", [("8001", "8002"), ("30d", "31d"), ("135M", "136M"), ("acme", "acne"), ("demo", "dome")]
)
def test_the_digest_changes_with_any_decision(change):
    assert policy(SMALL.replace(*change)).digest != policy(SMALL).digest


@pytest.mark.parametrize(
    "line", ["reasoning: release", "embeddings: int8", "dimensions: 384", "prefix_cache_salt: true"]
)
def test_a_field_that_earlier_versions_did_not_have_is_in_the_digest_once_it_decides_something(line):
    assert policy(with_model(line)).digest != policy(SMALL).digest


@pytest.mark.parametrize("line", ["reasoning: drop", "embeddings: refuse", "prefix_cache_salt: false"])
def test_such_a_field_at_its_default_is_not(line):
    assert policy(with_model(line)).digest == policy(SMALL).digest


def test_the_digest_of_a_policy_stays_what_it_was_in_earlier_versions():
    assert policy(SMALL).digest == "6d3f5a9b69a2593cc12b9877c0466a1a0946dda6e282da06d22c5479a3a266f7"


# Rules cannot be built illegal.


def test_limits_follow_from_the_size_of_a_theft_rounded_down():
    day, ever = Window(name="1d", duration_s=86_400), Window(name="lifetime", duration_s=None)
    assert ModelBudget(window=ever, fraction=Fraction(1, 3)).limit_bits(100) == 33
    assert ModelBudget(window=day, time_to_theft_s=7 * 86_400).limit_bits(100) == 14
    assert ModelBudget(window=day, bits=8).limit_bits(100) == 8


@pytest.mark.parametrize(
    "build",
    [
        lambda: Window(name="lifetime", duration_s=1),
        lambda: Window(name="1d", duration_s=None),
        lambda: Window(name="0s", duration_s=0),
        lambda: Window(name="lifetime", duration_s=None, sliding=True),
        lambda: ModelBudget(window=window("1d")),
        lambda: ModelBudget(window=window("1d"), bits=1, fraction=Fraction(1)),
        lambda: ModelBudget(window=window("lifetime"), time_to_theft_s=1),
        WeightsSource,
        lambda: WeightsSource(file="a", parameters=1),
    ],
)
def test_an_illegal_rule_cannot_be_built(build):
    with pytest.raises(ValueError):
        build()


def test_rules_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy(SMALL).digest = ""  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy(SMALL).models["x"] = None  # type: ignore[index]


# Quantities and addresses.


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("90s", "90s"),
        ("60m", "1h"),
        ("24h", "1d"),
        ("365d", "1y"),
        ("5y", "5y"),
        ("lifetime", "lifetime"),
        ("sliding 24h", "sliding 1d"),
        ("sliding 60m", "sliding 1h"),
    ],
)
def test_a_window_has_one_name_however_it_is_spelled(text, name):
    assert window(text).name == name


def test_a_sliding_window_moves_by_a_twenty_fourth_rounded_up():
    assert (window("sliding 1d").duration_s, window("sliding 1d").sliding) == (86_400, True)
    assert (window("sliding 1d").step_s, window("sliding 1d").steps) == (3600, 26)
    assert (window("sliding 3601s").step_s, window("sliding 3601s").steps) == (151, 26)
    assert not window("1d").sliding


def test_a_budget_may_slide_beside_a_calendar_window_of_the_same_length():
    both = SMALL.replace(
        "{window: 1d, time_to_theft", "{window: sliding 1d, bytes: 1GiB}\n      - {window: 1d, time_to_theft"
    )
    assert [budget.window.name for budget in policy(both).models["demo"].budgets] == ["1d", "sliding 1d"]
    assert policy(both).digest != policy(SMALL).digest


@pytest.mark.parametrize(
    "text", ["sliding 59m", "sliding 1s", "sliding lifetime", "sliding", "sliding  1d", "Sliding 1d"]
)
def test_a_window_that_cannot_slide_is_refused(text):
    with pytest.raises(ValueError, match=r"at least one hour|is not a window"):
        window(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("70e9", 7 * 10**10), ("70B", 7 * 10**10), ("1.5K", 1500), ("135000000", 135_000_000), ("1", 1), ("1e15", 10**15)],
)
def test_parameter_counts_are_read_in_every_usual_spelling(text, count):
    model = policy(SMALL.replace("135M", text)).models["demo"]
    assert model.weights.parameters == count


def test_all_of_a_budget_may_be_shared_out():
    assert policy(with_tenant("share: 100%")).tenants["acme"].share == 1


def test_weights_may_be_counted_as_they_are():
    assert policy(SMALL.replace("compression: 4", "compression: 1")).models["demo"].theft_compression == 1


def test_the_longest_path_is_still_a_path():
    path = "/" + "x" * 4095
    assert policy(SMALL + f"audit: {{directory: {path}}}\n").audit.directory == path
    assert "must have 1 to 4096 characters" in mistakes(SMALL + f"audit: {{directory: {path}x}}\n")[0]


def test_durations_are_exact():
    assert duration_s("20ms") == Fraction(1, 50)
    assert duration_s("0.1s") == Fraction(1, 10)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("http://HOST.example:080", "http://host.example:80"),
        ("http://[0::1]:1", "http://[::1]:1"),
        ("unix:/a b", "unix:/a b"),
    ],
)
def test_a_backend_has_one_spelling(text, normal):
    assert upstream(text) == normal


@pytest.mark.parametrize(
    "text",
    ["[127.0.0.1]:1", "[x]:1", "a b:1", ":1", "unix:", "unix:/" + "x" * 107, "a..b:1", "1.2.3.4.5:1", f"{'a' * 64}:1"],
)
def test_what_cannot_be_bound_is_no_address(text):
    with pytest.raises(ValueError, match="is not an address"):
        address(text)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a:1", "a:1", True),
        ("a:1", "a:2", False),
        ("a:1", "b:1", False),
        ("0.0.0.0:1", "127.0.0.1:1", True),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "a:1", False),
        ("a:1", "unix:/a", False),
    ],
)
def test_addresses_collide_when_one_port_would_have_two_owners(one, other, expected):
    assert collide(address(one), address(other)) is expected


# Whatever is written, the answer is rules or lines.

PIECES = st.sampled_from(
    [
        *re.findall(r"\w+|\W", SMALL),
        "&a",
        "*a",
        "!t ",
        "<<",
        "no",
        "{",
        "}",
        "[",
        "]",
        "? ",
        "- ",
        "|",
        '"',
        "\n",
        "  ",
        ": ",
        "null",
    ]
)


@given(
    st.one_of(st.text(), st.lists(PIECES).map("".join), st.lists(PIECES, max_size=3).map(lambda p: SMALL + "".join(p)))
)
@example('"\\ud800": "\\ud800"')
@example("%YAML 1." + "1" * 5000 + "\n---\na")
@example("models: {demo: {budgets: {a: b}}}\ntenants: {acme: {keys: {a: b}, models: {a: b}, budget: {window: [1d]}}}")
@example("models: [a]\ntenants: [b]\nmeters: {raw: zstd}\n'[key]': 1")
@example("models: {'[key]': {'[key]': 1}}")
def test_parse_never_raises_and_every_mistake_is_one_line(text):
    result = parse(text, name="f")
    if isinstance(result, Mistakes):
        assert len(result.render().splitlines()) == len(result.mistakes) > 0
        assert all(mistake.line >= 1 and mistake.column >= 1 for mistake in result.mistakes)


# Examples, schema and documentation.


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_policies_parse_match_the_schema_and_name_it_for_editors(path):
    text = path.read_text()
    assert isinstance(parse(text, name=path.name), Policy)
    assert text.startswith("# yaml-language-server: $schema=../../policy/schema.json\n")
    Draft202012Validator(json_schema()).validate(yaml.safe_load(text))


def test_there_are_examples():
    assert {path.name for path in EXAMPLES} >= {"demo.yaml", "sidecar-70b.yaml"}


def test_the_committed_schema_is_up_to_date():
    committed = (ROOT / "policy" / "schema.json").read_text()
    current = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert committed == current, "run: make reference"


def test_the_schema_is_valid_and_refuses_what_the_parser_refuses():
    Draft202012Validator.check_schema(json_schema())
    validator = Draft202012Validator(json_schema())
    assert validator.is_valid(yaml.safe_load(with_tenant("budget: [{window: 1d, bytes: 1B}]")))
    assert not validator.is_valid(yaml.safe_load(with_tenant("budget: {window: 1d, byts: 1B}")))
    assert not validator.is_valid(yaml.safe_load(with_tenant("share: forty")))


def test_every_field_is_named_in_the_reference():
    reference = (ROOT / "docs" / "policy.md").read_text()
    schema = json_schema()
    for shape in (schema, *schema["$defs"].values()):
        for field in shape["properties"]:
            assert re.search(rf"`(\w+\.)?{field}`", reference), f"{field} is not in docs/policy.md"


def test_every_policy_in_the_reference_parses():
    reference = (ROOT / "docs" / "policy.md").read_text()
    documents = [block for block in re.findall(r"```yaml\n(.*?)```", reference, re.DOTALL) if "listen:" in block]
    assert documents
    for document in documents:
        policy(document)


def test_a_language_model_meter_needs_a_scorer_and_a_scorer_needs_the_meter() -> None:
    scorer = "scorer: {address: unix:/run/weir/score.sock, code: " + "AB" * 32 + "}\n"
    assert mistakes(SMALL + "meters: [raw, language_model]\n") == [
        "weir.yaml:14:15: meters[1]: needs a `scorer:` to ask; see docs/policy.md"
    ]
    (line,) = mistakes(SMALL + scorer)
    assert "scorer: is not asked, because `meters` does not name language_model" in line
    policy = parse(SMALL + "meters: [raw, zstd, language_model]\n" + scorer, name="weir.yaml")
    assert isinstance(policy, rules.Policy)
    assert policy.scorer == rules.Scorer(address="unix:/run/weir/score.sock", code="ab" * 32)


def test_the_digest_of_a_code_is_64_hex_digits() -> None:
    text = SMALL + "meters: [raw, language_model]\nscorer: {address: unix:/s, code: abc}\n"
    assert mistakes(text) == ["weir.yaml:15:34: scorer.code: 'abc' is not a SHA-256 digest; write its 64 hex digits"]


def test_usage_is_recounted_with_a_pinned_tokenizer_and_with_nothing_else() -> None:
    tokenizer = "    usage: recount\n    tokenizer: {file: tokenizer.json, sha256: " + "AB" * 32 + "}\n"
    policy = parse(SMALL.replace("    budgets:", tokenizer + "    budgets:", 1), name="weir.yaml")
    assert isinstance(policy, rules.Policy), policy
    (model,) = policy.models.values()
    assert model.tokenizer == rules.Tokenizer(file="tokenizer.json", sha256="ab" * 32)
    lines = mistakes(SMALL.replace("    budgets:", "    usage: recount\n    budgets:", 1))
    assert any("`usage: recount` and `tokenizer` go together" in line for line in lines)
