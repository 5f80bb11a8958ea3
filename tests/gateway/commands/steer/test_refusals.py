"""What is said when it does not work: the server's words, what helps, and the exit status."""

from __future__ import annotations

import argparse
import json

import pytest

from gateway.commands.steer.address import address_of
from gateway.commands.steer.server import Undecided
from tests.gateway.commands.steer.conftest import Script, Steer

VECTORS = {"object": "list", "data": [{"id": "happy", "kind": "direction", "layers": [3]}]}


@pytest.mark.parametrize(
    ("code", "status", "helps"),
    [
        ("steering_not_allowed", 403, "steering: true"),
        ("invalid_api_key", 401, "WEIR_KEY"),
        ("conflict", 409, "weir steer delete"),
        ("egress_budget_exhausted", 429, "weir status"),
        ("bad_layer", 400, "count from 0"),
    ],
)
def test_a_refusal_is_the_servers_words_and_what_helps(
    script: Script, steer: Steer, capsys, code, status, helps
) -> None:
    script.refuses("POST /v1/steering/vectors/combine", status, code, "That is not possible.", "terms[0]")
    assert steer("combine", "sum", "a:1", "b:-0.5", "--json") == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["error"] == {
        "message": "That is not possible.",
        "status": status,
        "code": code,
        "param": "terms[0]",
    }
    assert "That is not possible. (terms[0])" in said.err
    assert helps in said.err


@pytest.mark.parametrize(
    ("name", "helps"), [("hapy", "Did you mean happy?"), ("grief", "`weir steer list` shows those there are (1)")]
)
def test_an_unknown_vector_is_answered_with_names_near_it(script: Script, steer: Steer, capsys, name, helps) -> None:
    script.refuses(f"GET /v1/steering/vectors/{name}", 404, "vector_not_found", "no such steering vector")
    script.says("GET /v1/steering/vectors", VECTORS)
    assert steer("show", name) == 1
    assert helps in capsys.readouterr().err


def test_a_vector_that_a_spec_names_is_looked_for_by_the_servers_words(script: Script, steer: Steer, capsys) -> None:
    script.refuses("POST /v1/steering/calibrate", 400, "unknown_vector", "no steering vector 'hapyy'", "steering")
    script.says("GET /v1/steering/vectors", VECTORS)
    assert steer("calibrate", "happy", "--param", "also=hapyy", "--dataset", "sentiment") == 1
    assert "No vector is called hapyy. Did you mean happy?" in capsys.readouterr().err


def test_without_vectors_the_hint_is_how_to_make_one(script: Script, steer: Steer, capsys) -> None:
    script.refuses("GET /v1/steering/vectors/mood", 404, "vector_not_found", "no such steering vector")
    script.says("GET /v1/steering/vectors", {"object": "list", "data": []})
    assert steer("show", "mood") == 1
    assert "weir steer extract" in capsys.readouterr().err


def test_what_a_gateway_does_not_have_is_said_to_be_the_model_servers(
    gateway_script: Script, steer: Steer, capsys
) -> None:
    assert steer("jobs") == 1
    assert "--url" in capsys.readouterr().err


def test_several_models_must_be_chosen_from(gateway_script: Script, steer: Steer, capsys) -> None:
    gateway_script.says("GET /v1/models", {"object": "list", "data": [{"id": "big"}, {"id": "small"}]})
    gateway_script.says("GET /v1/steering/vectors?model=small", VECTORS)
    assert steer("list") == 2
    assert "--model: big, small" in capsys.readouterr().err
    assert steer("list", "--model", "small") == 0
    assert "happy" in capsys.readouterr().out


def test_nobody_there_is_its_own_status(steer: Steer, script: Script, capsys) -> None:
    script.close()
    assert steer("list") == 3
    assert script.url in capsys.readouterr().err


def test_an_answer_that_is_no_json_is_no_steering_server(script: Script, steer: Steer, capsys) -> None:
    script.says("GET /v1/steering/vectors", "<html>")
    assert steer("list") == 3
    assert "is this a steering server?" in capsys.readouterr().err


def test_a_redirect_is_not_followed_with_the_key(script: Script, steer: Steer) -> None:
    script.says("GET /v1/steering/vectors", {"moved": True}, status=302)
    assert steer("list", "--key", "secret") == 1
    assert [route for route, _ in script.asked] == ["GET /v1/capabilities", "GET /v1/steering/vectors"]


def test_the_key_of_weir_up_goes_to_its_own_address_only(tmp_path, monkeypatch) -> None:
    for name in ("WEIR_URL", "WEIR_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "keys.json").write_text('{"acme": "the-key"}')
    (tmp_path / "weir.yaml").write_text(POLICY.format(directory=tmp_path))
    options = {"key": None, "model": None, "state": tmp_path}
    up = address_of(argparse.Namespace(url=None, **options))
    assert (up.url, up.key) == ("http://127.0.0.1:18181", "the-key")
    elsewhere = address_of(argparse.Namespace(url="http://127.0.0.1:9", **options))
    assert elsewhere.key is None
    monkeypatch.setenv("WEIR_KEY", "mine")
    assert address_of(argparse.Namespace(url=None, **options)).key == "mine"
    with pytest.raises(Undecided):
        address_of(argparse.Namespace(url="ftp://x", **options))


POLICY = """\
listen: 127.0.0.1:18181
admin: 127.0.0.1:18182
models:
  m:
    upstream: http://127.0.0.1:18183
    weights: {{parameters: 1e9}}
    theft_compression: 4
    budgets: [{{window: lifetime, fraction: 50%}}]
tenants:
  acme: {{keys: ["sha256:2277a06b9469d8d734e8281ce2bc3873390a41074ecdbe7a88c2ed9aaa210882"], models: [m], share: 60%}}
audit: {{directory: {directory}/audit}}
ledger: "sqlite:{directory}/ledger.db"
"""
