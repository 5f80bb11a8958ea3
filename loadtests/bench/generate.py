"""`python -m loadtests.bench.generate`: plain transformers `generate` behind the same lines as inference/bench/generate.py.

A line of JSON is a question: {"prompts": [[token ids]], "tokens": n}; prompts of one question are equally long. So is the
answer: {"ids": [[n token ids]], "wall_s", "cpu_s"}. Greedy, end tokens ignored, float32.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging


def main() -> int:
    """Answer until the end of the input."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench.generate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model directory in HF layout")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default: all cores")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    for line in sys.stdin:
        print(json.dumps(answered(model, **json.loads(line))), flush=True)
    return 0


@torch.inference_mode()
def answered(model: PreTrainedModel, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """Continue every prompt by so many tokens, all at once."""
    ids = torch.tensor(prompts)
    how = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, eos_token_id=None, pad_token_id=0, use_cache=True
    )
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {"ids": found[:, ids.shape[1] :].tolist(), "wall_s": wall_s, "cpu_s": cpu_s}


if __name__ == "__main__":
    sys.exit(main())
