"""`python -m loadtests.evaluation`: what steering does to refusal, on a model that hardly refuses and on one that does."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtests.evaluation import refusing_model
from loadtests.evaluation.refusal import ANSWER_TOKENS, Findings, measure, read_instructions
from loadtests.evaluation.server import REPOSITORY, EvaluationError, serving

BEGIN, END = "<!-- refusal:begin -->", "<!-- refusal:end -->"
SMALL = "smollm2-135m-instruct"
MODELS = (SMALL, refusing_model.NAME)
_DESCRIPTION = f"""\
Start a model server for each model and ask it, over HTTP, to choose a refusal direction on one half of the project's own
harmful and harmless instructions (Arditi et al. 2406.11717) and to measure, on the other half, how often it refuses: plain,
with the direction ablated, added, and set to the average of either side; with a random direction as the control. Greedy
answers of {ANSWER_TOKENS} tokens, judged by how they begin. The second model is 478 MB, downloaded on first use and believed by its
SHA-256 only."""
_COLUMNS = ("condition", "harmful refused", "harmless refused", "KL on harmless, nats a token", "relative dose")


def main() -> int:
    """Measure and print; exit status 0 if every model was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.evaluation",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: both")
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "var/models", help="where models are kept")
    parser.add_argument("--layers-step", type=int, default=2, help="try every n-th layer (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of the model server (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, every candidate's too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help=f"fill the tables between {BEGIN} and {END}")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the model server ends too
    console = Console(stderr=True)
    found = []
    try:
        for name in arguments.models:
            found.append(_measured(name, arguments, console))
            _print(found[-1])
    except EvaluationError as error:
        console.print(f"[red]{error}", highlight=False)
        return 1
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([dataclasses.asdict(one) for one in found], indent=2) + "\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(filled(arguments.markdown.read_text(), found))
    return 0


def _measured(name: str, arguments: argparse.Namespace, console: Console) -> Findings:
    model = _model(name, arguments.directory, console)
    options = ["--dtype", arguments.dtype, "--threads", str(arguments.threads)]
    with (
        tempfile.TemporaryDirectory(prefix="weir-evaluation-") as directory,
        serving(model, Path(directory), options=options) as server,
        Progress(console=console) as shown,
    ):
        n_layers = server.get("/v1/capabilities")["model"]["layers"]
        task = shown.add_task(name, total=1.0)

        def progress(what: str, done: float) -> None:
            shown.update(task, description=f"{name}: {what}", completed=done)

        # Early blocks hold no such direction, and the rule leaves the last fifth out anyway.
        layers = list(range(n_layers // 4, int(0.8 * n_layers), arguments.layers_step))
        return measure(server, read_instructions(), layers=layers, progress=progress)


def _model(name: str, directory: Path, console: Console) -> Path:
    if name == refusing_model.NAME:
        return refusing_model.fetch(directory / f"{name}.gguf", console=console)
    subprocess.run(
        [sys.executable, "-m", "inference", "prepare", "--out", str(directory / name)], cwd=REPOSITORY, check=True
    )
    return directory / name


def _print(found: Findings) -> None:
    table = Table(*_COLUMNS, title=_title(found))
    for row in _cells(found):
        table.add_row(*row)
    Console().print(table)


def filled(text: str, found: list[Findings]) -> str:
    """A document with the tables between its marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    tables = "\n".join(map(_markdown, found))
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def _markdown(found: Findings) -> str:
    rows = [_COLUMNS, ("---",) + ("---:",) * (len(_COLUMNS) - 1), *_cells(found)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"**{_title(found)}**\n\n{table}\n"


def _title(found: Findings) -> str:
    position = "" if found.position is None else f", position {found.position} from the end"
    rule = f"{found.eligible} of {len(found.candidates)} candidates satisfy the rule, of those the one of least bypass"
    if not found.eligible:
        rule = f"none of {len(found.candidates)} candidates satisfies the rule, so the one of least bypass of all"
    return (
        f"{found.model['id']}, {found.model['dtype']}: block output {found.layer}{position}; {rule}; "
        f"{found.instructions} held-out instructions of each kind"
    )


def _cells(found: Findings) -> list[tuple[str, ...]]:
    return [
        (
            row.condition,
            f"{row.harmful_refused:.0%}",
            f"{row.harmless_refused:.0%}",
            f"{row.harmless_kl_nats:.3f}",
            f"{row.relative_dose:.2f}",
        )
        for row in found.rows
    ]


if __name__ == "__main__":
    sys.exit(main())
