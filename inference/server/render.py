"""Answers as OpenAI spells them: chat and text completions, whole and in chunks. Pure: values in, documents out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec

from inference.answer import LastPiece, Piece
from inference.steering.applied import Applied

Document = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache

    def document(self) -> Document:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendering:
    """How one answer is written. `id` of the answer, `created` in Unix seconds."""

    id: str
    created: int
    model: str
    is_chat: bool
    with_token_ids: bool

    def whole(self, pieces: Sequence[Piece], last: LastPiece, usage: Usage, steering: Document | None) -> Document:
        """The body of an answer that is not streamed."""
        text = "".join(piece.text for piece in pieces) + last.text
        choice: Document = {"index": 0}
        if self.is_chat:
            choice["message"] = {"role": "assistant", "content": text or (None if last.tool_calls else "")}
            if last.tool_calls:
                choice["message"]["tool_calls"] = self._tool_calls(last, indexed=False)
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": last.finish_reason}
        ids = [token_id for piece in pieces for token_id in piece.token_ids] + list(last.token_ids)
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {
            **self._head(kind),
            "choices": [self._with_ids(choice, ids)],
            "usage": usage.document(),
            **({} if steering is None else {"steering": steering}),
        }

    def opening(self) -> list[Document]:
        """Chunks before the first token: chat names the role."""
        return [self._chunk({"role": "assistant", "content": ""}, ())] if self.is_chat else []

    def piece(self, piece: Piece) -> Document:
        return self._chunk({"content": piece.text}, piece.token_ids)

    def closing(self, last: LastPiece, usage: Usage | None, steering: Document | None) -> list[Document]:
        """Chunks after the last token: what text was held back, calls, the end, and usage if asked for."""
        chunks: list[Document] = []
        ids = last.token_ids
        if last.text:
            chunks.append(self._chunk({"content": last.text}, ids))
            ids = ()
        if last.tool_calls:
            chunks.append(self._chunk({"tool_calls": self._tool_calls(last, indexed=True)}, ids))
            ids = ()
        end = self._chunk({}, ids, finish_reason=last.finish_reason)
        if steering is not None:
            end["steering"] = steering
        chunks.append(end)
        if usage is not None:
            chunks.append({**self._head(self._chunk_kind), "choices": [], "usage": usage.document()})
        return chunks

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _head(self, kind: str) -> Document:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: Document, ids: Sequence[int], *, finish_reason: str | None = None) -> Document:
        body: Document = {"delta": delta} if self.is_chat else {"text": delta.get("content", "")}
        choice = {"index": 0, **body, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head(self._chunk_kind), "choices": [self._with_ids(choice, ids)]}

    def _with_ids(self, choice: Document, ids: Sequence[int]) -> Document:
        return {**choice, "token_ids": list(ids)} if self.with_token_ids else choice

    def _tool_calls(self, last: LastPiece, *, indexed: bool) -> list[Document]:
        calls = []
        for index, call in enumerate(last.tool_calls):
            function = {"name": call.name, "arguments": call.arguments}
            document = {"id": f"call_{self.id[-16:]}_{index}", "type": "function", "function": function}
            calls.append({"index": index, **document} if indexed else document)
        return calls


def steering_document(fingerprint: str, applied: Applied) -> Document:
    """What steering did, as counted in the forward pass. Tokens are those that anything was applied to."""
    return {
        "fingerprint": fingerprint,
        "applied": {
            "prompt_tokens": applied.prompt_tokens,
            "generated_tokens": applied.generated_tokens,
            "layers": applied.layers(),
        },
        "relative_dose": applied.relative_dose(),
        **({"gates": list(applied.gates)} if applied.gates else {}),
    }


def sse_event(document: Document) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


SSE_DONE = b"data: [DONE]\n\n"
