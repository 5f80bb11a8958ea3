"""What the benchmark's upstream says: one completion of about 333 bytes, one stream of 200 tokens. Constants only."""

import json
import re

TOKENS = 200
CREATED_S = 1_790_000_000  # a constant: answers must be the same bytes in every run
ENVELOPE: dict[str, object] = {"id": "chatcmpl-5f2a9c71", "created": CREATED_S, "model": "bench"}

COMPLETION_TEXT = "A weir holds a river back and measures what passes over it, so that nobody has to guess."

# Prose, not one word two hundred times: a gateway that compresses what it relays must not be flattered.
PROSE = """
A weir is a low wall across a river. Water gathers behind it, rises, and spills over the crest in a sheet whose depth
tells the keeper how much is passing. That is the whole trick: give the flow one place to go, make the place a known
shape, and a single reading on a painted board stands for thousands of litres each second. Millers knew this long
before engineers wrote the formula down. They also knew the weakness. A channel dug around the side, even a narrow one,
makes every reading a lie, and the board goes on looking honest. So the old charters spend few words on the wall and
many on the banks, on who may dig, who must inspect, and what is owed when a breach is found. The same holds for any
gauge. It is worth exactly as much as the claim that nothing goes round it. When the spring flood comes the wall
disappears under brown water, and for a few days nobody measures anything at all; the keeper writes the highest mark in
his book, assumes the worst, and waits for the river to fall back to where it can be counted again, patiently, by hand,
one morning after another, until summer.
"""


def tokens() -> list[str]:
    """The stream's 200 pieces of text, a word and its leading space each."""
    pieces = re.findall(r" ?\S+", " ".join(PROSE.split()))
    assert len(pieces) >= TOKENS
    return pieces[:TOKENS]


def completion() -> bytes:
    """The body of a non-streaming answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": COMPLETION_TEXT}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 24, "completion_tokens": 20, "total_tokens": 44}
    return compact({"object": "chat.completion", **ENVELOPE, "choices": [choice], "usage": usage})


def stream_events() -> list[bytes]:
    """The server-sent events of a streaming answer: role, 200 tokens, finish, [DONE]."""
    deltas = [{"role": "assistant", "content": ""}, *({"content": token} for token in tokens())]
    events = [stream_event(delta, finish_reason=None) for delta in deltas]
    return [*events, stream_event({}, finish_reason="stop"), b"data: [DONE]\n\n"]


def stream_event(delta: dict[str, str], *, finish_reason: str | None) -> bytes:
    """One `data:` event of the OpenAI chunk shape."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + compact({"object": "chat.completion.chunk", **ENVELOPE, "choices": [choice]}) + b"\n\n"


def compact(value: dict[str, object]) -> bytes:
    """JSON without spaces, as inference servers send it."""
    return json.dumps(value, separators=(",", ":")).encode()


def text_of(body: bytes, *, streaming: bool) -> str:
    """The text that a client would show for an answer, however a proxy has cut it into events."""
    if not streaming:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    text = ""
    for line in body.decode().splitlines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            for choice in json.loads(data).get("choices", []):
                text += choice.get("delta", {}).get("content") or ""
    return text
