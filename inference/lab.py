"""Runs the model for jobs: activations of texts, distributions, greedy answers, steered or not, in small pieces.

Everything is a generator that yields the fraction done after each piece (a forward pass of `LAB_STEP_TOKENS_MAX`
tokens, or one decode step) and returns its result, so that the engine can serve others in between. Several short texts
share a pass; attention runs per text, so a text's numbers do not depend on its company.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from inference.kv import KvCache
from inference.limits import LAB_HEAD_ROWS
from inference.model import Model, Span
from inference.passages import Passage, Positions, TokenIds, batches, common_beginning, packed
from inference.steering.applied import Applied, Tally
from inference.steering.gates import GateReader
from inference.steering.program import CompiledSteering
from inference.steering.spans import SteeredSpan
from inference.steering.table import SteeringTable

Result = TypeVar("Result")
Pieces = Generator[float, None, Result]
"""Yields the fraction done, 0..1, and returns the result."""

Reduce = Callable[[slice, Tensor], Tensor]
"""(rows, their logits [rows, vocab_size]) → something smaller [rows, …]."""


class Lab:
    """One model at work for jobs. Only the engine's thread may run what these methods return."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._last_layer = model.config.n_layers - 1

    @property
    def n_layers(self) -> int:
        return self._last_layer + 1

    def activations(self, texts: Sequence[TokenIds], *, layers: Sequence[int], at: Positions) -> Pieces[list[Tensor]]:
        """Block outputs of each text, float32 on the CPU [rows, layers, d_model]; a mean is taken in float64."""
        taken: list[list[Tensor]] = [[] for _ in texts]
        sums: dict[int, Tensor] = {}

        def take(text: int, start: int, outputs: dict[int, Tensor]) -> None:
            count = len(outputs[layers[0]])
            wanted = at.of(len(texts[text]))
            rows = slice(max(wanted.start - start, 0), max(min(wanted.stop - start, count), 0))
            chosen = torch.stack([outputs[layer][rows] for layer in layers], dim=1)
            if at.is_mean:
                total = chosen.double().sum(0, keepdim=True)
                sums[text] = sums[text] + total if text in sums else total
            elif chosen.shape[0]:
                taken[text].append(chosen.float().cpu())

        passages = [Passage(token_ids=text, prompt_tokens=len(text)) for text in texts]
        yield from self._run(passages, layers=set(layers), take=take)
        if at.is_mean:
            return [(sums[i] / len(at.of(len(text)))).float().cpu() for i, text in enumerate(texts)]
        return [torch.cat(parts) for parts in taken]

    def last_logits(
        self,
        prompts: Sequence[TokenIds],
        *,
        steering: CompiledSteering | None = None,
        applied: Applied | None = None,
        reduce: Reduce | None = None,
    ) -> Pieces[Tensor]:
        """Float32 logits of what follows each prompt [prompts, vocab_size], on the model's device.

        With `reduce`, what it makes of the logits of `LAB_HEAD_ROWS` prompts at a time [prompts, …].
        """
        ends: dict[int, Tensor] = {}

        def take(prompt: int, start: int, outputs: dict[int, Tensor]) -> None:
            if start + len(outputs[self._last_layer]) == len(prompts[prompt]):
                ends[prompt] = outputs[self._last_layer][-1]

        passages = [Passage(token_ids=prompt, prompt_tokens=len(prompt)) for prompt in prompts]
        yield from self._run_ends(passages, take=take, steering=steering, applied=applied)
        found: list[Tensor] = []

        def reduced(rows: slice, logits: list[Tensor]) -> None:
            found.append(logits[0] if reduce is None else reduce(rows, logits[0]))

        states = torch.stack([ends[i] for i in range(len(prompts))])
        yield from within(self.distributions([states], reduced), 1.0, 1.0)
        return torch.cat(found)

    def answer_states(
        self,
        passages: Sequence[Passage],
        *,
        steering: CompiledSteering | None = None,
        applied: Applied | None = None,
    ) -> Pieces[Tensor]:
        """What predicts each answer token, of all passages one behind the other [answer tokens, d_model].

        `distributions` makes logits of it. A passage needs at least one prompt token.
        """
        parts: dict[int, list[Tensor]] = {}

        def take(passage: int, start: int, outputs: dict[int, Tensor]) -> None:
            hidden = outputs[self._last_layer]
            first = max(passages[passage].prompt_tokens - 1 - start, 0)
            stop = len(passages[passage].token_ids) - 1 - start
            parts.setdefault(passage, []).append(hidden[first : max(stop, first)])

        yield from self._run_ends(passages, take=take, steering=steering, applied=applied)
        return torch.cat([part for i in range(len(passages)) for part in parts[i]])

    def distributions(
        self, states: Sequence[Tensor], take: Callable[[slice, list[Tensor]], None]
    ) -> Generator[float, None, None]:
        """Calls take(rows, [logits of those rows of each of `states`]) for `LAB_HEAD_ROWS` rows at a time."""
        rows = states[0].shape[0]
        for start in range(0, rows, LAB_HEAD_ROWS):
            part = slice(start, min(start + LAB_HEAD_ROWS, rows))
            take(part, [self._model.head(hidden[part]) for hidden in states])
            yield part.stop / rows

    def greedy_answers(
        self,
        prompts: Sequence[TokenIds],
        *,
        tokens_max: int,
        end_ids: Collection[int],
        steering: CompiledSteering | None = None,
        applied: Applied | None = None,
    ) -> Pieces[list[TokenIds]]:
        """The likeliest token, again and again, up to `tokens_max` or an end token (which is in the answer)."""
        answers: list[TokenIds] = []
        for batch in batches(prompts, tokens_max):
            done, share = len(answers) / len(prompts), len(batch) / len(prompts)
            gates = yield from within(self._gates(batch, steering), done, done)
            rows = [
                _Row(prompt=prompt, cache=self._cache(len(prompt) + tokens_max), gates=decided)
                for prompt, decided in zip(batch, gates, strict=True)
            ]
            answering = self._answer(rows, tokens_max, frozenset(end_ids), steering, applied)
            yield from within(answering, done, done + share)
            answers += [tuple(row.answer) for row in rows]
        return answers

    def _answer(
        self,
        rows: list[_Row],
        tokens_max: int,
        end_ids: frozenset[int],
        steering: CompiledSteering | None,
        applied: Applied | None,
    ) -> Generator[float, None, None]:
        for step in packed([row.prompt for row in rows]):
            states = self._step(
                [rows[part.text].part(part.start, part.stop, steering, applied) for part in step],
                [rows[part.text].cache for part in step],
                layers={self._last_layer},
            )[self._last_layer]
            ends = [part for part in step if part.stop == len(rows[part.text].prompt)]
            chosen = self._model.head(states[[part.row_stop - 1 for part in ends]]).argmax(-1).tolist() if ends else []
            for part, token_id in zip(ends, chosen, strict=True):
                rows[part.text].answer.append(token_id)
            yield 0.0
        table: SteeringTable | None = None
        for count in range(1, tokens_max):
            running = [row for row in rows if row.answer[-1] not in end_ids]
            if not running:
                break
            spans = [row.part(len(row.prompt) + count - 1, None, steering, applied) for row in running]
            if table is None or not table.fits(spans):
                table = SteeringTable(spans, device=self._model.device)
            caches = [row.cache for row in running]
            states = self._step(spans, caches, layers={self._last_layer}, table=table)[self._last_layer]
            for row, token_id in zip(running, self._model.head(states).argmax(-1).tolist(), strict=True):
                row.answer.append(token_id)
            yield count / tokens_max

    def _run_ends(
        self,
        passages: Sequence[Passage],
        *,
        take: Callable[[int, int, dict[int, Tensor]], None],
        steering: CompiledSteering | None,
        applied: Applied | None,
    ) -> Generator[float, None, None]:
        """`_run` to the last layer, for who needs nothing before a prompt's last token.

        What all prompts begin with (a chat template with its system message is often more than half of them) is then run
        once, unless steering treats it differently from prompt to prompt.
        """
        steering = steering if steering is not None and steering.steps else None  # nothing to do is the plain model
        layers = {self._last_layer}
        common = common_beginning(passages)
        if common == 0 or not _treats_beginnings_alike(steering):
            yield from self._run(passages, layers=layers, take=take, steering=steering, applied=applied)
            return
        prefix, once = self._cache(common), Applied()
        span = SteeredSpan(
            token_ids=passages[0].token_ids[:common], start=0, prompt_tokens=common, steering=steering, applied=once
        )
        self._step([span], [prefix], layers=layers)
        if applied is not None:
            _book(once, applied, times=len(passages))
        yield from self._run(passages, layers=layers, take=take, steering=steering, applied=applied, prefix=prefix)

    def _run(
        self,
        passages: Sequence[Passage],
        *,
        layers: Collection[int],
        take: Callable[[int, int, dict[int, Tensor]], None],
        steering: CompiledSteering | None = None,
        applied: Applied | None = None,
        prefix: KvCache | None = None,
    ) -> Generator[float, None, None]:
        """Run everything; take(passage, start, {layer: [tokens, d_model]}) for each piece, in the order of positions.

        The tokens in `prefix`, with which all passages begin, have been run.
        """
        begin = 0 if prefix is None else prefix.length
        texts = [passage.token_ids[begin:] for passage in passages]
        gates = yield from within(self._gates([p.token_ids[: p.prompt_tokens] for p in passages], steering), 0.0, 0.0)
        caches: dict[int, KvCache] = {}
        done = 0
        for step in packed(texts):
            spans = []
            for part in step:
                passage = passages[part.text]
                whole = part.stop - part.start == len(passage.token_ids)
                if part.start == 0:
                    caches[part.text] = self._cache(len(passage.token_ids), whole=whole, prefix=prefix)
                spans.append(
                    SteeredSpan(
                        token_ids=texts[part.text][part.start : part.stop],
                        start=begin + part.start,
                        prompt_tokens=passage.prompt_tokens,
                        steering=steering,
                        applied=applied if applied is not None or steering is None else Applied(),
                        gates=gates[part.text],
                    )
                )
            outputs = self._step(spans, [caches[part.text] for part in step], layers=layers)
            for part in step:
                rows = slice(part.row_start, part.row_stop)
                take(part.text, begin + part.start, {layer: output[rows] for layer, output in outputs.items()})
                if part.stop == len(texts[part.text]):
                    del caches[part.text]
                    done += 1
            yield done / len(texts)

    def _gates(self, prompts: Sequence[TokenIds], steering: CompiledSteering | None) -> Pieces[list[tuple[bool, ...]]]:
        """Decided on the plain prompts, as the engine does."""
        if steering is None or not steering.gates:
            return [()] * len(prompts)
        readers = [GateReader(steering.gates) for _ in prompts]

        def take(prompt: int, _: int, outputs: dict[int, Tensor]) -> None:
            readers[prompt].read(outputs)

        passages = [Passage(token_ids=prompt, prompt_tokens=len(prompt)) for prompt in prompts]
        yield from self._run(passages, layers=readers[0].layers, take=take)
        return [reader.decide() for reader in readers]

    def _step(
        self,
        spans: Sequence[SteeredSpan],
        caches: Sequence[KvCache],
        *,
        layers: Collection[int],
        table: SteeringTable | None = None,
    ) -> dict[int, Tensor]:
        table = SteeringTable(spans, device=self._model.device) if table is None else table
        token_ids = torch.tensor([token_id for span in spans for token_id in span.token_ids], device=self._model.device)
        outputs = self._model.block_outputs(
            token_ids,
            [Span(cache, len(span.token_ids)) for cache, span in zip(caches, spans, strict=True)],
            layers=layers,
            steering=table or None,
        )
        table.finish_step()
        table.settle()
        return outputs

    def _cache(self, tokens: int, *, whole: bool = False, prefix: KvCache | None = None) -> KvCache:
        """`whole`: it will be filled in one pass, and nothing read from it later. `prefix`: its tokens come first."""
        model = self._model
        cache = KvCache(model.config, capacity=tokens, dtype=model.dtype, device=model.device, layers_share=whole)
        if prefix is not None:
            cache.keys[:, :, : prefix.length] = prefix.keys
            cache.values[:, :, : prefix.length] = prefix.values
            cache.length = prefix.length
        return cache


def within(pieces: Pieces[Result], start: float, stop: float) -> Pieces[Result]:
    """The same work as a part of a larger one: its 0..1 becomes start..stop."""
    try:
        while True:
            try:
                fraction = next(pieces)
            except StopIteration as end:
                result: Result = end.value
                return result
            yield start + fraction * (stop - start)
    finally:
        pieces.close()


@dataclasses.dataclass(kw_only=True, eq=False)
class _Row:
    """One answer in the making."""

    prompt: TokenIds
    cache: KvCache
    gates: tuple[bool, ...]
    answer: list[int] = dataclasses.field(default_factory=list)

    def part(
        self, start: int, stop: int | None, steering: CompiledSteering | None, applied: Applied | None
    ) -> SteeredSpan:
        return SteeredSpan(
            token_ids=(*self.prompt, *self.answer)[start:stop],
            start=start,
            prompt_tokens=len(self.prompt),
            steering=steering,
            applied=applied if applied is not None or steering is None else Applied(),
            gates=self.gates,
        )


def _treats_beginnings_alike(steering: CompiledSteering | None) -> bool:
    """Whether the same first tokens are steered the same way in every prompt: gates and places counted from the end do not."""
    if steering is None:
        return True
    return not steering.gates and not any(selection.counts_from_end for selection in steering.selections)


def _book(once: Applied, applied: Applied, *, times: int) -> None:
    """Add `times` what was done `once`, to prompt tokens only."""
    applied.prompt_tokens += times * once.prompt_tokens
    for site, tally in once.sites.items():
        total = applied.sites.setdefault(site, Tally())
        total.prompt_tokens += times * tally.prompt_tokens
        total.dose_sum += times * tally.dose_sum
