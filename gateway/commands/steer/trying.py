"""`weir steer try`: the plain model and the steered one side by side, as they write."""

from __future__ import annotations

import argparse
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from rich.live import Live
from rich.table import Table

from gateway.commands.steer.server import Server, Undecided
from gateway.commands.steer.tables import dose_hint, layers_text, number
from gateway.commands.steer.terminal import Terminal
from gateway.commands.steer.uses import SPEC_MARK, USES_HELP, add_use, use_of

SCALES_MAX = 8  # columns of a terminal; evaluate is for more
SCALED = ("add", "ablate", "scale_projection", "sae", "head_add")  # operations with a scale in their formula
LOOKS_PER_S = 8

_DESCRIPTION = f"""\
Ask the same question of the plain model and of the steered one, side by side, and show what was done: how many tokens
the operation was applied to, at which layers, the relative dose (how far activations were moved, as a share of their
length: safe below 0.7, coherence is usually lost near 1.9), and the fingerprint of what steered.

{USES_HELP}
Temperature 0 (the default) makes steering the only difference. Above it both sides get the same seed, so that they draw
the same noise, but only from a model server: a gateway chooses the seeds itself."""

_EXAMPLES = """\
examples:
  weir steer try mood "How was your day?" --scale 1 --scale -1
  weir steer try mood "How was your day?" --op ablate
  weir steer try mood "How was your day?" --op cap --param low=-1 --param high=1 --layer 18
  weir steer try mood "How was your day?" --apply generation --when harm:7:above:0.02
  weir steer try @mixture.json "How was your day?"
  weir steer try mood "My day was" --completion --temperature 0.8 --seed 3 --url http://127.0.0.1:8001"""


@dataclass(kw_only=True)
class Side:
    """One column, while it is written. Only its own thread writes it."""

    title: str
    scale: float | None
    steering: dict[str, Any] | None
    text: str = ""
    report: dict[str, Any] | None = None
    finish_reason: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, event: dict[str, Any]) -> None:
        """One event of the stream."""
        with self.lock:
            for choice in event.get("choices", []):
                self.text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.report = event.get("steering") or self.report

    def document(self) -> dict[str, Any]:
        """What became of it."""
        return {
            "scale": self.scale,
            "asked": self.steering,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "steering": self.report,
        }


def add(parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add the command."""
    parser = parsers.add_parser(
        "try",
        help="plain and steered answers side by side",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_use(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="what the user says")
    parser.add_argument(
        "--scale", action="append", type=float, metavar="X", help=f"a column each, up to {SCALES_MAX}; default: 1"
    )
    how = parser.add_argument_group("how it answers")
    how.add_argument("--max-tokens", type=int, default=60, metavar="N", help="default: %(default)s")
    how.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: %(default)s, greedy")
    how.add_argument("--seed", type=int, metavar="N", help="of all sides; default: drawn. A model server's only")
    how.add_argument("--system", metavar="TEXT", help="a system message")
    how.add_argument("--completion", action="store_true", help="go on with PROMPT instead of answering it")
    parser.set_defaults(act=_try)
    return [parser]


def _try(arguments: argparse.Namespace, terminal: Terminal) -> int:
    server = terminal.server
    sides = [Side(title="plain", scale=None, steering=None), *_steered(arguments)]
    seed = _seed(arguments, server)
    path, body = _request(arguments, server.model, seed)

    _ask_all(server, path, body, sides, terminal)
    document = {
        "model": server.model,
        "prompt": arguments.prompt,
        "temperature": arguments.temperature,
        "seed": seed,
        "answers": [side.document() for side in sides],
    }
    terminal.show(document, _columns(sides), *_remarks(arguments, sides, seed))
    return 0


def _ask_all(server: Server, path: str, body: dict[str, Any], sides: Sequence[Side], terminal: Terminal) -> None:
    """All sides at once; whoever watches a terminal sees them write. Raises what the first of them to fail raised."""
    enough = threading.Event()

    def ask(side: Side) -> None:
        steering = {} if side.steering is None else {"steering": side.steering}
        for event in server.events(path, {**body, **steering}):
            side.take(event)
            if enough.is_set():  # hanging up is how an answer is cancelled
                return

    with ThreadPoolExecutor(len(sides)) as pool:
        asked = [pool.submit(ask, side) for side in sides]
        try:
            if terminal.out.is_terminal and not terminal.as_json:
                with Live(console=terminal.out, auto_refresh=False, transient=True) as live:
                    while wait(asked, timeout=1 / LOOKS_PER_S).not_done:
                        live.update(_columns(sides), refresh=True)
            for one in asked:
                one.result()
        finally:
            enough.set()


def _steered(arguments: argparse.Namespace) -> list[Side]:
    steering = use_of(arguments)
    if arguments.name.startswith(SPEC_MARK):
        if arguments.scale:
            raise Undecided("--scale: a steering object from a file has its own scales")
        return [Side(title=arguments.name, scale=None, steering=steering)]
    (use,) = steering["vectors"]
    scales: Sequence[float | None] = arguments.scale or [1.0 if use["op"] in SCALED else None]
    if len(scales) > SCALES_MAX:
        raise Undecided(f"--scale: at most {SCALES_MAX} fit side by side; `weir steer evaluate` measures more")
    sides = []
    for scale in scales:
        scaled = use if scale is None else {**use, "scale": scale}
        title = f"{use['op']} {use['id']}" + ("" if scale is None else f" × {scale:g}".replace("-", "−"))
        sides.append(Side(title=title, scale=scale, steering={"vectors": [scaled]}))
    return sides


def _seed(arguments: argparse.Namespace, server: Server) -> int | None:
    """The seed of all sides; None if there is no say in it, or no chance."""
    if server.is_gateway:
        if arguments.seed is not None:
            raise Undecided("--seed: a gateway chooses seeds itself; ask the model server directly with --url")
        return None
    if arguments.seed is None and arguments.temperature > 0:
        return secrets.randbits(32)
    return int(arguments.seed) if arguments.seed is not None else None


def _request(arguments: argparse.Namespace, model: str, seed: int | None) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "stream": True,
    }
    if seed is not None:
        body["seed"] = seed
    if arguments.completion:
        return "/v1/completions", {**body, "prompt": arguments.prompt}
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    return "/v1/chat/completions", {**body, "messages": [*system, {"role": "user", "content": arguments.prompt}]}


def _columns(sides: Sequence[Side]) -> Table:
    table = Table(expand=True, show_lines=True)
    for side in sides:
        table.add_column(side.title, ratio=1, overflow="fold")
    rows = []
    for side in sides:
        with side.lock:
            rows.append((side.text.strip() + ("…" if side.finish_reason == "length" else ""), _report(side)))
    table.add_row(*(_literal(text) for text, _ in rows))
    if any(report for _, report in rows):
        table.add_row(*(report for _, report in rows), style="dim")
    return table


def _literal(text: str) -> str:
    """What a model writes is no markup."""
    return text.replace("[", r"\[")


def _report(side: Side) -> str:
    report = side.report
    if report is None:
        return ""
    applied = report["applied"]
    lines = [
        f"applied to {applied['prompt_tokens']} prompt and {applied['generated_tokens']} generated tokens",
        f"layers {layers_text(applied['layers']) or 'none'}",
        f"relative dose {number(report['relative_dose'], 3)}",
    ]
    if "gates" in report:
        lines.append(f"gates {', '.join('open' if is_open else 'closed' for is_open in report['gates'])}")
    lines.append(f"fingerprint {report['fingerprint'][:16]}")
    return "\n".join(lines)


def _remarks(arguments: argparse.Namespace, sides: Sequence[Side], seed: int | None) -> list[str]:
    found = []
    for side in sides:
        if side.steering is None:
            continue
        if side.report is None:
            found.append(f"{side.title}: the server did not say that it steered")
            continue
        hint = dose_hint(side.report["relative_dose"])
        if hint is not None:
            found.append(f"{side.title}: relative dose {side.report['relative_dose']:.2f} is {hint}")
        if not side.report["applied"]["prompt_tokens"] + side.report["applied"]["generated_tokens"]:
            found.append(f"{side.title}: nothing was applied; this is the plain model")
    if seed is not None:
        found.append(f"all sides have seed {seed}")
    elif arguments.temperature > 0:
        found.append("a gateway draws each side's seed anew, so chance makes them differ too; --temperature 0 does not")
    return found
