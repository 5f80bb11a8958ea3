"""One signature may take away and never give: what is not known to be stricter is called looser, by its path."""

from __future__ import annotations

import pytest

from policy.document import parse
from policy.rules import Policy
from policy.strictness import looser

KEY, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
AUDITORS = [
    "weir-auditor-x25519:a:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
    "weir-auditor-x25519:b:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
]
LICENSED = f"""\
listen: 127.0.0.1:8080
admin: 127.0.0.1:9090
models:
  m:
    upstream: http://127.0.0.1:1
    weights: {{parameters: 1e9}}
    theft_compression: 4
    budgets: [{{window: lifetime, fraction: 10%}}, {{window: 1d, time_to_theft: 5y}}, {{window: 1h, bytes: 1MB}}]
    usage: recount
    tokenizer: {{file: t.json, sha256: {"c" * 64}}}
    reasoning: release
    embeddings: int8
    answer_tokens_max: 1000
    answer_tokens_default: 500
  n: {{upstream: "http://127.0.0.1:2", weights: {{parameters: 1e9}}, theft_compression: 4, budgets: [{{window: 1d, bytes: 1MB}}]}}
tenants:
  t:
    keys: ["{KEY}", "{OTHER}"]
    models: [m, n]
    share: 40%
    budget: [{{window: 1d, bytes: 1MB}}]
    steering: true
    streams_max: 10
  u: {{keys: ["sha256:{"d" * 64}"], models: [m]}}
release: {{tick: 20ms}}
meters: [raw, zstd, language_model]
scorer: {{address: unix:/s}}
audit: {{directory: ./a, auditors: [{", ".join(AUDITORS)}]}}
"""


def policy(text: str) -> Policy:
    rules = parse(text, name="weir.yaml")
    assert isinstance(rules, Policy), rules.render()
    return rules


def found(*changes: tuple[str, str], back: bool = False) -> list[str]:
    changed = LICENSED
    for before, after in changes:
        assert before in changed
        changed = changed.replace(before, after)
    return looser(policy(changed), policy(LICENSED)) if back else looser(policy(LICENSED), policy(changed))


ONE_WAY = [
    ([("fraction: 10%", "fraction: 9%")], ["models.m.budgets"]),
    ([("time_to_theft: 5y", "time_to_theft: 6y")], ["models.m.budgets"]),
    ([("window: 1h, bytes: 1MB", "window: 1h, bytes: 999kB")], ["models.m.budgets"]),
    ([("1h, bytes: 1MB}]", "1h, bytes: 1MB}, {window: 2h, bytes: 9MB}]")], ["models.m.budgets"]),
    ([("theft_compression: 4\n", "theft_compression: 5\n")], ["models.m.theft_compression"]),
    ([("usage: recount", "usage: drop"), (f"    tokenizer: {{file: t.json, sha256: {'c' * 64}}}\n", "")], ["models.m.tokenizer", "models.m.usage"]),
    ([("reasoning: release", "reasoning: drop")], ["models.m.reasoning"]),
    ([("reasoning: release", "reasoning: release\n    prefix_cache_salt: true")], ["models.m.prefix_cache_salt"]),
    ([("embeddings: int8", "embeddings: binary")], ["models.m.embeddings"]),
    ([("embeddings: int8", "embeddings: refuse")], ["models.m.embeddings"]),
    ([("answer_tokens_max: 1000", "answer_tokens_max: 900")], ["models.m.answer_tokens_max"]),
    ([("answer_tokens_default: 500", "answer_tokens_default: 400")], ["models.m.answer_tokens_default"]),
    ([(f'"{KEY}", ', "")], ["tenants.t.key_digests"]),
    ([("models: [m, n]", "models: [m]")], ["tenants.t.models"]),
    ([("share: 40%", "share: 30%")], ["tenants.t.share"]),
    ([("budget: [{window: 1d, bytes: 1MB}]", "budget: [{window: 1d, bytes: 1kB}]")], ["tenants.t.budgets"]),
    ([("steering: true", "steering: false")], ["tenants.t.steering"]),
    ([("streams_max: 10", "streams_max: 9")], ["tenants.t.streams_max"]),
    ([(f'  u: {{keys: ["sha256:{"d" * 64}"], models: [m]}}\n', "")], ["tenants.u"]),
    ([("meters: [raw, zstd, language_model]\nscorer: {address: unix:/s}\n", "meters: [raw, zstd]\n")], ["meters", "scorer"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "paths"), ONE_WAY, ids=lambda value: str(value)[:40])
def test_what_takes_away_is_stricter_and_its_undoing_is_looser(
    changes: list[tuple[str, str]], paths: list[str]
) -> None:
    assert found(*changes) == []
    assert found(*changes, back=True) == paths


NEITHER = [
    ([("fraction: 10%", "bytes: 1B")], ["models.m.budgets"]),
    ([("time_to_theft: 5y", "bytes: 1B")], ["models.m.budgets"]),
    ([("window: 1h, bytes: 1MB", "window: 1h, fraction: 1%")], ["models.m.budgets"]),
    ([("window: 1d, time_to_theft", "window: sliding 1d, time_to_theft")], ["models.m.budgets"]),
    ([("http://127.0.0.1:1\n", "http://127.0.0.1:3\n")], ["models.m.upstream"]),
    ([("weights: {parameters: 1e9}\n", "weights: {parameters: 1e8}\n")], ["models.m.weights"]),
    ([("tick: 20ms", "tick: 40ms")], ["release"]),
    ([("./a,", "./b,")], ["audit"]),
    ([(f", auditors: [{', '.join(AUDITORS)}]", "")], ["audit"]),
    ([("127.0.0.1:8080", "0.0.0.0:8080")], ["listen"]),
    ([("share: 40%\n", "\n")], ["tenants.t.share"]),
    ([("    budget: [{window: 1d, bytes: 1MB}]\n", "    budget: [{window: 2d, bytes: 1kB}]\n")], ["tenants.t.budgets"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "paths"), NEITHER, ids=lambda value: str(value)[:40])
def test_what_cannot_be_compared_is_looser(changes: list[tuple[str, str]], paths: list[str]) -> None:
    assert found(*changes) == paths


def test_a_limit_where_there_was_none_is_stricter() -> None:
    assert found(("models: [m]}", "models: [m], share: 1%, budget: {window: 1d, bytes: 1B}}")) == []


def test_every_addition_is_named() -> None:
    model = '  o: {upstream: "http://127.0.0.1:4", weights: {parameters: 1e9}, theft_compression: 4, budgets: [{window: 1d, bytes: 1B}]}\n'
    assert found(("tenants:\n", f"{model}tenants:\n"), ("share: 40%", "share: 50%")) == ["models.o", "tenants.t.share"]


def test_a_policy_is_no_looser_than_itself() -> None:
    assert found() == []
