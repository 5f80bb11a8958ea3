"""`python -m inference.bench.generate`: continues prompts as fast as the engine can, for whoever asks on standard input.

A line of JSON is a question: {"prompts": [[token ids]], "tokens": n}. So is the answer: {"ids": [[n token ids]], "wall_s",
"cpu_s"}. Greedy, end tokens ignored, nothing remembered between questions; loadtests/bench/generate.py is the same
program around plain transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from inference.engine import Engine
from inference.loading import load
from inference.request import EngineRequest, Handle
from inference.sampling import SamplingParams


def main() -> int:
    """Answer until the end of the input."""
    parser = argparse.ArgumentParser(prog="python -m inference.bench.generate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model directory or .gguf file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default: all cores")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with ThreadPoolExecutor(max_workers=1) as executor:  # in a thread that ends, as in the server
        loading = executor.submit(load, arguments.model, dtype=torch.float32, device=torch.device("cpu"))
        model = loading.result().model
    engine = Engine(model, batch_rows_max=64, kv_tokens_max=1 << 20, prefix_tokens_max=0)
    engine.start()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answered(engine, **json.loads(line))) + "\n")
        sys.stdout.flush()
    engine.stop()
    return 0


def answered(engine: Engine, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """Continue every prompt by so many tokens, all at once."""
    found: list[list[int]] = [[] for _ in prompts]
    over = threading.Semaphore(0)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for prompt, ids in zip(prompts, found, strict=True):
        request = EngineRequest(
            prompt_ids=tuple(prompt),
            max_tokens=tokens,
            sampling=SamplingParams(seed=0, temperature=0.0),
            steering=None,
            on_token=_keeping(ids),
            on_end=lambda *_: over.release(),
        )
        assert isinstance(engine.submit(request), Handle)
    for _ in prompts:
        over.acquire()
    return {"ids": found, "wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}


def _keeping(ids: list[int]) -> Callable[[int], bool]:
    """Keeps what is sampled, and never ends."""

    def on_token(token_id: int) -> bool:
        ids.append(token_id)
        return False

    return on_token


if __name__ == "__main__":
    sys.exit(main())
