"""`python -m inference.score.numerics`: the measurement behind `measure.LOGIT_ERROR_MAX`.

The same texts alone in one thread (the reference), and in other circumstances: batches, other thread counts, and cut
short, since a symbol's mass must not depend on what follows either. Printed is the worst difference of a logit, of the
bits of any token that could have come, and of the bits of the token that did. The texts are those a thief would pick
too: junk, repetitions and rare characters drive activations further than prose does.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from inference.kv import KvCache
from inference.loading import LoadedModel, load
from inference.model import Model, Span
from inference.score.answers import sample_answers
from inference.score.measure import token_bits

_HEAD_ROWS, _HEAD_ROWS_OTHER = 64, 19
_GROUP_TEXTS = 16
Worst = tuple[float, float, float]
Run = Callable[[Model, Sequence[Tensor]], Iterator[Tensor]]
"""Sequences of ids [tokens] → hidden states [tokens, d_model], one by one in order."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m inference.score.numerics", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model directory")
    parser.add_argument("--answers", type=int, default=48, metavar="N", help="sampled answers (default: %(default)s)")
    parser.add_argument("--junk", type=int, default=160, metavar="N", help="made-up texts (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(arguments.model, dtype=torch.float32, device=torch.device("cpu"))
    texts = _sequences(loaded, answers=arguments.answers, junk=arguments.junk)
    count = sum(len(text) for text in texts)
    sys.stdout.write(f"{len(texts)} texts, {count} tokens; differences from each text alone in one thread\n")
    worst = {name: (0.0, 0.0, 0.0) for name, _, _ in _RUNS}
    for start in range(0, len(texts), _GROUP_TEXTS):
        for name, found in _differences(loaded.model, texts[start : start + _GROUP_TEXTS]):
            worst[name] = _larger(worst[name], found)
    for name, (logit, any_token, token) in worst.items():
        sys.stdout.write(f"{name:32} logit {logit:.2e}   any token {any_token:.2e} bits   its own {token:.2e} bits\n")
    return 0


def _larger(a: Worst, b: Worst) -> Worst:
    return max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2])


def _differences(model: Model, texts: Sequence[Tensor]) -> Iterator[tuple[str, Worst]]:
    """What was worst in each run and text, held against the text alone in one thread."""
    references = list(_batches_of(1)(model, texts))
    for name, run, threads in _RUNS:
        torch.set_num_threads(threads)
        for ids, reference, hidden in zip(texts, references, run(model, texts), strict=True):
            yield name, _difference(model, ids, reference, hidden, threads)
        torch.set_num_threads(1)


def _difference(model: Model, ids: Tensor, reference: Tensor, hidden: Tensor, threads: int) -> Worst:
    worst: Worst = (0.0, 0.0, 0.0)
    for rows in torch.split(torch.arange(len(ids) - 1), _HEAD_ROWS):
        torch.set_num_threads(1)
        expected = model.head(reference[rows])
        torch.set_num_threads(threads)
        # Another number of rows at a time, too: in the server a text's rows fall into chunks as its company wills.
        found = torch.cat([model.head(hidden[part]) for part in torch.split(rows, _HEAD_ROWS_OTHER)])
        everything = torch.arange(expected.shape[1]).expand(len(rows), -1)
        bits = (token_bits(found, everything) - token_bits(expected, everything)).abs()
        own = bits.gather(-1, ids[rows + 1].unsqueeze(-1))
        worst = _larger(worst, (float((found - expected).abs().max()), float(bits.max()), float(own.max())))
    return worst


def _batches_of(size: int) -> Run:
    def run(model: Model, texts: Sequence[Tensor]) -> Iterator[Tensor]:
        for start in range(0, len(texts), size):
            group = texts[start : start + size]
            spans = [Span(_cache(model, len(ids)), len(ids)) for ids in group]
            yield from torch.split(model.hidden(torch.cat(list(group)), spans), [len(ids) for ids in group])

    return run


def _in_pieces(model: Model, texts: Sequence[Tensor]) -> Iterator[Tensor]:
    for ids in texts:
        cache = _cache(model, len(ids))
        yield torch.cat([model.hidden(piece, [Span(cache, len(piece))]) for piece in torch.split(ids, 13)])


def _cut_short(model: Model, texts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Each row from a text that ends a little behind it: at 7, 31, 64, 100, 191, 193, 300 tokens."""
    for ids in texts:
        ends = [end for end in (7, 31, 64, 100, 191, 193, 300) if end < len(ids)] + [len(ids)]
        runs = [model.hidden(ids[:end], [Span(_cache(model, end), end)]) for end in ends]
        yield torch.cat([run[begin:] for begin, run in zip([0, *ends], runs, strict=False)])


_RUNS: tuple[tuple[str, Run, int], ...] = (
    ("batches of 4, 1 thread", _batches_of(4), 1),
    ("batches of 16, 1 thread", _batches_of(16), 1),
    ("alone, 2 threads", _batches_of(1), 2),
    ("batches of 16, 2 threads", _batches_of(16), 2),
    ("cut short, 1 thread", _cut_short, 1),
    ("pieces of 13 tokens, 1 thread", _in_pieces, 1),
)
"""The last is none that the server uses: another attention kernel, to see what kernels differ by."""


def _cache(model: Model, capacity: int) -> KvCache:
    return KvCache(model.config, capacity=capacity, dtype=model.dtype, device=model.device)


def _sequences(loaded: LoadedModel, *, answers: int, junk: int) -> list[Tensor]:
    chosen = random.Random(7)  # noqa: S311 - texts, not secrets
    sampled = [answer.text for answer in sample_answers(loaded, count=answers, tokens_max=160, temperature=1.0)]
    encoded = [loaded.tokenizer.encode(text, add_special_tokens=True) for text in sampled]
    encoded += [_junk(kind % 5, chosen, loaded.tokenizer.vocab_size) for kind in range(junk)]
    chosen.shuffle(encoded)
    return [torch.tensor(ids[:400]) for ids in encoded if len(ids) > 1]


def _junk(kind: int, chosen: random.Random, vocab_size: int) -> list[int]:
    """Token ids of one made-up text: any tokens, one token again and again, few tokens, rare ones, or a long one."""
    length = chosen.randrange(2, 200)
    few = [chosen.randrange(vocab_size) for _ in range(4)]
    if kind == 0:
        return [chosen.randrange(vocab_size) for _ in range(length)]
    if kind == 1:
        return few[:1] * length
    if kind == 2:
        return [chosen.choice(few) for _ in range(length)]
    if kind == 3:
        return [chosen.randrange(20) for _ in range(length)]  # control tokens and the first bytes
    return [chosen.randrange(vocab_size - 500, vocab_size) for _ in range(400)]


if __name__ == "__main__":
    sys.exit(main())
