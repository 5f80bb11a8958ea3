"""Answers to measure on: the model's own, sampled by the real engine from fixed seeds."""

from __future__ import annotations

import dataclasses
import threading

from inference.engine import Engine
from inference.loading import LoadedModel
from inference.request import EndReason, EngineRequest, Handle
from inference.sampling import SamplingParams
from inference.steering.applied import Applied

QUESTIONS = (
    "Explain how tides work.",
    "Write a short story about a lighthouse keeper.",
    "How do I bake sourdough bread?",
    "What were the causes of the First World War?",
    "Write a Python function that reverses a linked list.",
    "Give me advice for a job interview.",
    "Describe a walk through a forest in autumn.",
    "What is the difference between a virus and a bacterium?",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    question: str
    text: str

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.question}]


def sample_answers(loaded: LoadedModel, *, count: int, tokens_max: int, temperature: float = 0.8) -> list[Answer]:
    """`count` answers to the questions in turn, with seeds 0, 1, …; the same ones every time."""
    engine = Engine(loaded.model, batch_rows_max=8, kv_tokens_max=8 * (tokens_max + 128))
    engine.start()
    try:
        texts = [_Text(loaded, engine, seed, tokens_max, temperature) for seed in range(count)]
        return [Answer(question=text.question, text=text.wait()) for text in texts]
    finally:
        engine.stop()


class _Text:
    """One answer in the making."""

    def __init__(self, loaded: LoadedModel, engine: Engine, seed: int, tokens_max: int, temperature: float) -> None:
        self.question = QUESTIONS[seed % len(QUESTIONS)]
        self._loaded = loaded
        self._token_ids: list[int] = []
        self._over = threading.Event()
        shown = loaded.template.render([{"role": "user", "content": self.question}])
        request = EngineRequest(
            prompt_ids=tuple(loaded.tokenizer.encode(shown, add_special_tokens=False)),
            max_tokens=tokens_max,
            sampling=SamplingParams(seed=seed, temperature=temperature),
            steering=None,
            on_token=self._take,
            on_end=self._end,
        )
        submitted = engine.submit(request)
        assert isinstance(submitted, Handle), submitted

    def wait(self) -> str:
        self._over.wait()
        return self._loaded.tokenizer.decode(self._token_ids)

    def _take(self, token_id: int) -> bool:
        self._token_ids.append(token_id)
        return token_id in self._loaded.end_ids

    def _end(self, _: EndReason, __: Applied) -> None:
        self._over.set()
