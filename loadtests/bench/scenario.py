"""The five kinds of load, as a table."""

import json
from dataclasses import dataclass

from loadtests.bench.client import NUMBER, Plan
from loadtests.bench.peer import Peer, Target

QUESTION = "What does a weir do, and why would anyone build one across a perfectly good river?"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One kind of load; `share` is its part of --requests."""

    name: str
    streaming: bool
    paced: bool
    connections: int
    share: float
    warmups: int  # requests per connection
    numbered: bool = False  # each request says which it is, so that its way through a gateway can be timed


JSON_ALONE = Scenario(name="json c=1", streaming=False, paced=False, connections=1, share=0.25, warmups=20)
JSON = Scenario(name="json c=16", streaming=False, paced=False, connections=16, share=1.0, warmups=5)
JSON_MANY = Scenario(name="json c=64", streaming=False, paced=False, connections=64, share=2.0, warmups=5)
BURST = Scenario(name="burst stream c=4", streaming=True, paced=False, connections=4, share=0.2, warmups=3)
PACED = Scenario(name="paced stream c=32", streaming=True, paced=True, connections=32, share=0.016, warmups=1)
SCENARIOS = (JSON_ALONE, JSON, JSON_MANY, BURST, PACED)


def plan_of(scenario: Scenario, peer: Peer, *, requests: int, seconds: float) -> Plan:
    """The load that puts `scenario` on `peer`; never fewer requests than connections."""
    target = peer.paced if scenario.paced else peer.burst
    return Plan(
        host=target.host,
        port=target.port,
        request=http_request(target, streaming=scenario.streaming, numbered=scenario.numbered),
        streaming=scenario.streaming,
        connections=scenario.connections,
        warmups=scenario.warmups,
        requests=max(scenario.connections, round(requests * scenario.share)),
        seconds=seconds,
        numbered=scenario.numbered,
    )


def http_request(target: Target, *, streaming: bool, numbered: bool = False) -> str:
    """A whole request, as an OpenAI client would send it."""
    content = f"{QUESTION} {NUMBER.decode()}" if numbered else QUESTION
    question = {"model": target.model, "messages": [{"role": "user", "content": content}], "max_tokens": 256}
    body = json.dumps({**question, "stream": True} if streaming else question)
    headers = {
        "Host": f"{target.host}:{target.port}",
        "Authorization": f"Bearer {target.key}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **target.headers,
    }
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines) + "\r\n\r\n" + body
