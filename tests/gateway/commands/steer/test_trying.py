"""Plain and steered, side by side."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.commands.steer.conftest import Script, Steer

CHAT = "POST /v1/chat/completions"


def answer(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A stream that says how it was steered."""
    uses = body.get("steering", {}).get("vectors", [])
    text = f"scale {uses[0].get('scale')} [b]" if uses else "plain"
    dose = abs(uses[0].get("scale") or 0) if uses else 0
    report = {
        "fingerprint": "f" * 32,
        "applied": {"prompt_tokens": 5 if dose else 0, "generated_tokens": 2 if dose else 0, "layers": [3, 4, 5]},
        "relative_dose": dose,
        "gates": [bool(dose)],
    }
    end: dict[str, Any] = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    return [{"choices": [{"delta": {"content": text}}]}, end | ({"steering": report} if uses else {})]


def test_each_scale_is_a_column_beside_the_plain_model(script: Script, steer: Steer, capsys) -> None:
    script.says(CHAT, answer)
    assert steer("try", "mood", "Hello?", "--scale", "0.5", "--scale", "-2", "--layer", "3-5") == 0
    bodies = script.bodies(CHAT)
    assert sorted(body.get("steering", {}).get("vectors", [{}])[0].get("scale", 0) for body in bodies) == [-2, 0, 0.5]
    assert {tuple(use["layers"]) for body in bodies if "steering" in body for use in body["steering"]["vectors"]} == {
        (3, 4, 5)
    }
    assert all(body["temperature"] == 0 and body["messages"][-1]["content"] == "Hello?" for body in bodies)
    said = capsys.readouterr().out
    for expected in (
        "plain",
        "scale 0.5 [b]",
        "scale -2.0 [b]",
        "5 prompt and 2 generated",
        "layers 3–5",
        "gates open",
    ):
        assert expected in said
    assert "add mood × −2: relative dose 2.00 is too strong" in said
    assert "× 0.5: relative" not in said


def test_what_was_not_applied_is_said(script: Script, steer: Steer, capsys) -> None:
    script.says(CHAT, answer)
    assert steer("try", "mood", "Hello?", "--scale", "0") == 0
    assert "nothing was applied; this is the plain model" in capsys.readouterr().out


def test_all_sides_have_the_same_seed(script: Script, steer: Steer, capsys) -> None:
    script.says(CHAT, answer)
    assert steer("try", "mood", "Hello?", "--temperature", "0.7", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {body["seed"] for body in script.bodies(CHAT)} == {found["seed"]}
    assert [side["text"] for side in found["answers"]] == ["plain", "scale 1.0 [b]"]
    assert found["answers"][1]["steering"]["relative_dose"] == 1.0


def test_a_gateways_seeds_are_its_own(gateway_script: Script, steer: Steer, capsys) -> None:
    gateway_script.says(CHAT, answer)
    assert steer("try", "mood", "Hello?", "--seed", "3") == 2
    assert steer("try", "mood", "Hello?", "--temperature", "0.7") == 0
    assert all("seed" not in body for body in gateway_script.bodies(CHAT))
    assert "chance makes them differ" in capsys.readouterr().out


def test_an_operation_without_a_scale_is_sent_without_one(script: Script, steer: Steer) -> None:
    script.says(CHAT, answer)
    options = (
        "--op",
        "cap",
        "--param",
        "low=-1",
        "--param",
        "high=1",
        "--apply",
        "generation",
        "--when",
        "harm:7:above:0.1",
    )
    assert steer("try", "mood", "Hello?", *options) == 0
    (steered,) = [body["steering"] for body in script.bodies(CHAT) if "steering" in body]
    assert steered == {
        "vectors": [
            {
                "id": "mood",
                "op": "cap",
                "params": {"low": -1, "high": 1},
                "apply": {"generation": "all"},
                "when": {"id": "harm", "layer": 7, "above": 0.1},
            }
        ]
    }


def test_a_whole_steering_object_comes_from_a_file(script: Script, steer: Steer, tmp_path) -> None:
    script.says(CHAT, answer)
    steering = {"vectors": [{"id": "mood", "scale": 2}, {"id": "loud", "op": "ablate"}], "conflict": "sum"}
    (tmp_path / "mix.json").write_text(json.dumps(steering))
    name = f"@{tmp_path / 'mix.json'}"
    assert steer("try", name, "Hello?") == 0
    assert [body["steering"] for body in script.bodies(CHAT) if "steering" in body] == [steering]
    assert steer("try", name, "Hello?", "--scale", "2") == 2
    assert steer("try", name, "Hello?", "--op", "ablate") == 2


def test_a_completion_goes_on_with_the_prompt(script: Script, steer: Steer, capsys) -> None:
    script.says("POST /v1/completions", [{"choices": [{"text": " and then", "finish_reason": "length"}]}])
    assert steer("try", "mood", "I went", "--completion") == 0
    assert {body["prompt"] for body in script.bodies("POST /v1/completions")} == {"I went"}
    said = capsys.readouterr().out
    assert "and then…" in said
    assert "the server did not say that it steered" in said


@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusal_of_any_side_is_the_commands(script: Script, steer: Steer, capsys, streamed: bool) -> None:
    error = {"error": {"message": "activations left the range of numbers", "code": "steering_diverged", "param": None}}
    script.says(CHAT, [error] if streamed else error, status=200 if streamed else 400)
    assert steer("try", "mood", "Hello?") == 1
    said = capsys.readouterr().err
    assert "activations left the range" in said
    assert "weir steer calibrate" in said
