"""`python -m inference.bench.overhead`: what steering costs a step, paired with the plain step of the same round.

Engines with the same prompts and different steering take turns, one step each, another one first each time. Quotients are
taken within a round, so a machine that slows down for a while slows both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch

from inference.config import ModelConfig
from inference.engine import Engine
from inference.kv import KvCache
from inference.loading import LoadedModel, load
from inference.model import Span
from inference.request import EngineRequest, Handle
from inference.sampling import SamplingParams
from inference.steering.applied import Applied
from inference.steering.compile import compile_spec
from inference.steering.program import CompiledSteering
from inference.steering.spec import SteeringSpec, VectorUse
from inference.steering.table import SteeredSpan, SteeringTable
from inference.steering.vector import StoredVector, direction

PLAIN, AGAIN = "none", "none, once more"
ONE_LAYER, ALL_LAYERS, ABLATED = "add, one layer", "add, all layers", "ablate everywhere"
OWN, OWN_ALL = "add, own vector and layer", "add, own vector, all layers"
DECODED = (PLAIN, AGAIN, ONE_LAYER, ALL_LAYERS, OWN, OWN_ALL, ABLATED)
PREFILLED = (PLAIN, AGAIN, ONE_LAYER, ALL_LAYERS, ABLATED)
PROMPT_TOKENS = 32  # of a row that decodes
LONG_PROMPT_TOKENS = 256
ROWS_MAX = 256
_NORM = 5.0  # of a vector: a tenth of what residuals have there

Turn = dict[str, tuple[float, float]]  # wall and CPU seconds of each kind in one round


def main() -> int:
    """A line of JSON for every measurement."""
    parser = argparse.ArgumentParser(prog="python -m inference.bench.overhead", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="model directory or .gguf file")
    add("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="CPU threads (default: all cores)")
    add("--rounds", type=int, default=40, metavar="N", help="steps of each kind (default: %(default)s)")
    add("--batches", default="1,8,64", metavar="N,N", help="rows that decode at once (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = torch.float32 if arguments.dtype == "float32" else torch.bfloat16
    # All that computes runs in one thread, as in the server: every thread that computes gets an OpenMP team of its own.
    with ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=(arguments.threads,)) as one:
        loaded = one.submit(load, arguments.model, dtype=dtype, device=torch.device("cpu")).result()
        _say(what="zero", is_identical=one.submit(zero_is_plain, loaded).result())
        for rows in map(int, arguments.batches.split(",")):
            turns = one.submit(decode_turns, loaded, rows=rows, rounds=arguments.rounds).result()
            _report("decode", turns, rows=rows, threads=arguments.threads)
        turns = one.submit(prefill_turns, loaded, rounds=max(2, arguments.rounds // 4)).result()
        _report("prefill", turns, rows=1, threads=arguments.threads)
    return 0


def decode_turns(loaded: LoadedModel, *, rows: int, rounds: int) -> list[Turn]:
    """Rounds of one decode step of every kind, `rows` rows each."""
    engines = {kind: _decoding(loaded, kind, rows, steps=rounds + 2) for kind in DECODED}
    turns = []
    for number in range(-1, rounds):  # the first round makes tables and warms up
        turn = {kind: _timed(engines[kind]) for kind in _rotated(DECODED, number)}
        if number >= 0:
            turns.append(turn)
    assert all(engine.active_requests == rows for engine in engines.values())
    return turns


def prefill_turns(loaded: LoadedModel, *, rounds: int) -> list[Turn]:
    """Rounds of one prompt of `LONG_PROMPT_TOKENS` of every kind."""
    engines = {kind: _engine(loaded, rows=1) for kind in PREFILLED}
    turns = []
    for number in range(-1, rounds):
        turn = {}
        for kind in _rotated(PREFILLED, number):
            prompt = tuple(5 + (number + 1) % 7 + place % 997 for place in range(LONG_PROMPT_TOKENS))
            _submit(engines[kind], prompt, max_tokens=1, steering=_steering(loaded, kind, row=0))
            turn[kind] = _timed(engines[kind])
            assert engines[kind].active_requests == 0
        if number >= 0:
            turns.append(turn)
    return turns


@torch.inference_mode()
def zero_is_plain(loaded: LoadedModel) -> bool:
    """Whether strength 0 gives the plain model's logits, bit for bit: prompt and next token."""
    vector = _vector(loaded.config, 0)
    use = VectorUse(id=vector.id, op="add", scale=0.0, layers="all")
    return torch.equal(_logits(loaded, None), _logits(loaded, _compiled(loaded, vector, use)))


def _logits(loaded: LoadedModel, steering: CompiledSteering | None) -> torch.Tensor:
    model, prompt = loaded.model, tuple(range(5, 5 + PROMPT_TOKENS))
    cache = KvCache(model.config, capacity=PROMPT_TOKENS + 1, dtype=model.dtype, device=model.device)
    logits = []
    for start, ids in ((0, prompt), (PROMPT_TOKENS, (7,))):
        span = SteeredSpan(
            token_ids=ids, start=start, prompt_tokens=PROMPT_TOKENS, steering=steering, applied=Applied()
        )
        table = SteeringTable([span], device=model.device)
        logits.append(model.logits(torch.tensor(ids), [Span(cache, len(ids))], steering=table or None, every=True))
    return torch.cat(logits)


def _decoding(loaded: LoadedModel, kind: str, rows: int, *, steps: int) -> Engine:
    """An engine whose next turns are decode steps of `rows` rows."""
    engine = _engine(loaded, rows=rows)
    for row in range(rows):
        prompt = tuple(5 + row + place for place in range(PROMPT_TOKENS))
        _submit(engine, prompt, max_tokens=rows + steps + 1, steering=_steering(loaded, kind, row=row))
    while engine.prompts_waiting:
        engine.step()
    return engine


def _engine(loaded: LoadedModel, *, rows: int) -> Engine:
    return Engine(loaded.model, batch_rows_max=rows, kv_tokens_max=1 << 30, prefix_tokens_max=0)


def _submit(engine: Engine, prompt: tuple[int, ...], *, max_tokens: int, steering: CompiledSteering | None) -> None:
    request = EngineRequest(
        prompt_ids=prompt,
        max_tokens=max_tokens,
        sampling=SamplingParams(seed=0, temperature=0.0),
        steering=steering,
        on_token=lambda _: False,
        on_end=lambda *_: None,
    )
    assert isinstance(engine.submit(request), Handle)


def _steering(loaded: LoadedModel, kind: str, *, row: int) -> CompiledSteering | None:
    config = loaded.config
    vector = _vector(config, row if kind in (OWN, OWN_ALL) else 0)
    uses = {
        ONE_LAYER: VectorUse(id=vector.id, op="add", layers=[2 * config.n_layers // 3]),
        ALL_LAYERS: VectorUse(id=vector.id, op="add", layers="all"),
        OWN: VectorUse(id=vector.id, op="add", scale=0.5 + row / ROWS_MAX, layers=[row % config.n_layers]),
        OWN_ALL: VectorUse(id=vector.id, op="add", scale=0.5 + row / ROWS_MAX, layers="all"),
        ABLATED: VectorUse(id=vector.id, op="ablate", layers="all"),
    }
    return _compiled(loaded, vector, uses[kind]) if kind in uses else None


def _compiled(loaded: LoadedModel, vector: StoredVector, use: VectorUse) -> CompiledSteering:
    spec, store = SteeringSpec(vectors=[use]), {vector.id: vector}
    return compile_spec(spec, store=store, config=loaded.config, model_digest=loaded.digest_sha256)


def _vector(config: ModelConfig, number: int) -> StoredVector:
    values = torch.randn(config.d_model, generator=torch.Generator().manual_seed(number))
    layers = {layer: values * (_NORM / values.norm()) for layer in range(config.n_layers)}
    return direction(id=f"v{number}", values=layers, metadata={"model_digest": None})


def _timed(engine: Engine) -> tuple[float, float]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    engine.step()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def _rotated(kinds: Sequence[str], number: int) -> Iterator[str]:
    return (kinds[(place + number) % len(kinds)] for place in range(len(kinds)))


def _report(what: str, turns: list[Turn], *, rows: int, threads: int) -> None:
    for kind in turns[0]:
        for_plain = [(turn[kind], turn[PLAIN]) for turn in turns]
        _say(
            what=what,
            rows=rows,
            threads=threads,
            kind=kind,
            wall_ms=1e3 * median(own[0] for own, _ in for_plain),
            cpu_ms=1e3 * median(own[1] for own, _ in for_plain),
            wall_quotient=median(own[0] / plain[0] for own, plain in for_plain),
            cpu_quotient=median(own[1] / plain[1] for own, plain in for_plain),
        )


def _say(**measured: object) -> None:
    sys.stdout.write(json.dumps(measured) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
