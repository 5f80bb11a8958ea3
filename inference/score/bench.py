"""`python -m inference.score.bench`: how fast texts are scored, and what the model's own answers cost."""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from inference.limits import SCORE_BATCH_TOKENS_DEFAULT
from inference.score.answers import Answer, sample_answers
from inference.score.app import ScoreService
from inference.score.opening import open_service
from inference.score.segmentation import TokenPath

_DESCRIPTION = """\
Sample answers of about 1 KB from the model itself (fixed seeds, temperature 0.8), then score them all and print
text tokens and bytes per second and core, the prompt's tokens run but not counted, and bits per byte.
"""


def main() -> int:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    # In a thread that ends, so that the scorer's is the only one with an OpenMP team.
    with ThreadPoolExecutor(max_workers=1) as executor:
        opening = executor.submit(open_service, arguments.model, batch_tokens_max=arguments.batch_tokens_max)
        service = opening.result()
    answers = sample_answers(service.loaded, count=arguments.texts, tokens_max=256)
    report = measure(service, answers, threads=arguments.threads)
    if arguments.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.writelines(f"{name.replace('_', ' '):32}{value:>12}\n" for name, value in report.items())
    return 0


def measure(service: ScoreService, answers: list[Answer], *, threads: int) -> dict[str, float]:
    """Score all answers at once, three times, and report the fastest. Starts and stops the service's scorer."""
    paths = [_path(service, answer) for answer in answers]
    service.scorer.start()
    taken_s = []
    for _ in range(3):
        began_s = time.perf_counter()
        scores = [future.result() for future in service.scorer.submit(paths)]
        taken_s.append(time.perf_counter() - began_s)
    service.scorer.stop()
    text_bytes = sum(len(answer.text.encode()) for answer in answers)
    tokens, bits = sum(score.symbols for score in scores), sum(score.bits for score in scores)
    return {
        "texts": len(answers),
        "bytes_per_text": round(text_bytes / len(answers)),
        "bits_per_byte": round(bits / text_bytes, 3),
        "threads": threads,
        "text_tokens_per_s_and_core": round(tokens / min(taken_s) / threads),
        "text_bytes_per_s_and_core": round(text_bytes / min(taken_s) / threads),
    }


def _path(service: ScoreService, answer: Answer) -> TokenPath:
    shown = service.loaded.template.render(answer.messages)
    return service.segmenter.path(shown, answer.text, add_special_tokens=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inference.score.bench", description=_DESCRIPTION)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="model directory")
    add("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    add("--texts", type=int, default=16, metavar="N", help="answers to sample and score (default: %(default)s)")
    add("--batch-tokens-max", type=int, default=SCORE_BATCH_TOKENS_DEFAULT, metavar="N", help="as for `score`")
    add("--json", action="store_true", help="one JSON object instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
