"""`weir steer calibrate` and `evaluate`: how strong, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gateway.commands.steer.following import run_job
from gateway.commands.steer.measurement import measurement, write_files
from gateway.commands.steer.tables import calibration_table, dose_hint, evaluation_lines, evaluation_table
from gateway.commands.steer.terminal import Terminal
from gateway.commands.steer.texts import DATASETS, add_contrast, add_prompts, contrast, prompts
from gateway.commands.steer.uses import USES_HELP, add_use, use_of, vector_names

DEFAULT_SCALES = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)

_CALIBRATE = f"""\
Find the scale at which steering moves the model's next-token distributions by a given amount: the --quantile of the KL
divergence from the plain model, per token of its own answers to the prompts, is --target-kl nats.

{USES_HELP}"""

_CALIBRATE_EXAMPLES = """\
examples:
  weir steer calibrate mood --dataset sentiment
  weir steer calibrate mood --prompt "How was your day?" --prompt "Tell me about a book." --chat --target-kl 0.5"""

_EVALUATE = f"""\
Measure what steering does at each of some scales: how much likelier it makes one side's texts or answers than the
other's (propensity), how far it moves distributions (KL), how well the steered model predicts the plain one's answers
(cross-entropy), how often answers begin as a refusal. A scale is the factor on the steering object's own scales.

{USES_HELP}
Propensity compares: with a dataset of pairs, the two texts of each held-out pair; with --prompt and both sides, the
answers of the one side with those of the other, on every prompt."""

_EVALUATE_EXAMPLES = """\
examples:
  weir steer evaluate mood --dataset sentiment -o mood.json --report mood.html
  weir steer evaluate mood --dataset sentiment --scale -1 0 1 --metric propensity --metric kl
  weir steer evaluate mood --prompts asks.txt --positive glad.txt --negative sour.txt --answer-prefix "I feel" --chat
  weir steer evaluate refusal --op ablate --dataset harmfulness --side positive --chat --metric refusal --scale 0 1"""


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add both commands."""
    raw = argparse.RawDescriptionHelpFormatter
    calibrate = parsers.add_parser(
        "calibrate",
        help="find the scale for a divergence",
        description=_CALIBRATE,
        epilog=_CALIBRATE_EXAMPLES,
        formatter_class=raw,
    )
    add_use(calibrate)
    texts = calibrate.add_argument_group("texts")
    texts.add_argument("--dataset", metavar="NAME", help=f"its held-out texts are the prompts: {DATASETS}")
    texts.add_argument("--chat", action="store_true", help="each prompt is what a user says, in the chat template")
    add_prompts(texts)
    calibrate.add_argument("--target-kl", type=float, metavar="NATS", help="default: 1")
    calibrate.add_argument("--quantile", type=float, metavar="Q", help="default: 0.95")
    calibrate.add_argument("--tolerance", type=float, metavar="SHARE", help="of the target; default: 0.02")
    calibrate.add_argument("--answer-tokens", type=int, metavar="N", help="of each prompt's answer; default: 32")
    calibrate.set_defaults(act=_calibrate)
    evaluate = parsers.add_parser(
        "evaluate",
        help="measure what steering does",
        description=_EVALUATE,
        epilog=_EVALUATE_EXAMPLES,
        formatter_class=raw,
    )
    add_use(evaluate)
    add_prompts(add_contrast(evaluate))
    evaluate.add_argument(
        "--scale", action="extend", nargs="+", type=float, metavar="X", help="default: -2 -1 -0.5 0 0.5 1 2"
    )
    evaluate.add_argument(
        "--metric",
        action="append",
        choices=["propensity", "kl", "cross_entropy", "refusal"],
        help="may be repeated; default: all that the texts allow",
    )
    evaluate.add_argument(
        "--side", choices=["positive", "negative", "both"], help="of a dataset, whose texts are prompts; default: both"
    )
    evaluate.add_argument("--paired", action="store_true", help="each prompt has its own line of both answer files")
    evaluate.add_argument("--answer-prefix", metavar="TEXT", help="what the assistant has said before the answers")
    evaluate.add_argument("--answer-tokens", type=int, metavar="N", help="default: 32")
    evaluate.add_argument("--rope", type=float, metavar="NATS", help="a change this small is none; default: 0.1")
    evaluate.add_argument("--seed", type=int, metavar="N", help="of the Bayesian comparison; default: 0")
    add_files(evaluate)
    evaluate.set_defaults(act=_evaluate)
    return [calibrate, evaluate]


def add_files(parser: argparse.ArgumentParser) -> None:
    """Options for what is written."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write what was measured, and how, as JSON")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page with plots: HTML, one file")


def _calibrate(arguments: argparse.Namespace, terminal: Terminal) -> int:
    fields = {
        "steering": use_of(arguments),
        "prompts": prompts(arguments),
        "dataset": arguments.dataset,
        "chat": arguments.chat or None,
        "target_kl_nats": arguments.target_kl,
        "quantile": arguments.quantile,
        "tolerance": arguments.tolerance,
        "answer_tokens": arguments.answer_tokens,
    }
    body = terminal.server.request(**fields)
    job = run_job(terminal, "/v1/steering/calibrate", body, what=f"calibrating {arguments.name}")
    terminal.show(job, calibration_table(job["result"]))
    hint = dose_hint(job["result"]["relative_dose"])
    if hint is not None:
        terminal.note(f"At this scale the relative dose is {hint}.")
    return 0


def _evaluate(arguments: argparse.Namespace, terminal: Terminal) -> int:
    steering = use_of(arguments)
    fields: dict[str, Any] = {
        "steering": steering,
        "scales": arguments.scale or list(DEFAULT_SCALES),
        "metrics": arguments.metric,
        "prompts": prompts(arguments),
        "side": arguments.side,
        "paired": arguments.paired or None,
        "answer_prefix": arguments.answer_prefix,
        "answer_tokens": arguments.answer_tokens,
        "rope_nats": arguments.rope,
        "seed": arguments.seed,
        **contrast(arguments),
    }
    body = terminal.server.request(**fields)
    job = run_job(terminal, "/v1/steering/evaluate", body, what=f"evaluating {arguments.name}")
    document = measurement(
        terminal.server,
        kind="evaluate",
        title=arguments.name,
        requests={"evaluate": body},
        jobs={"evaluate": job["id"]},
        vectors=vector_names(steering),
        result=job["result"],
    )
    terminal.show(document, evaluation_table(job["result"]), *evaluation_lines(job["result"]))
    write_files(arguments, terminal, document)
    return 0
