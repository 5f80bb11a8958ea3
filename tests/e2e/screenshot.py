"""`make screenshot`: docs/status-page.png, of a gateway after two minutes of traffic of every kind."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from policy.limits import HISTORY_DISTANCE_S
from tests.e2e.backend import Backend, Exchange, say
from tests.e2e.processes import BOB, Gateway, policy
from tests.e2e.test_status_page import DESKTOP, chromium, lively

TEXT = "The weir holds the river back and measures what passes over it. "
LOOKS = 14


def rules(upstream: str, directory: Path) -> dict[str, Any]:
    """Names that say something."""
    rules = policy(upstream, directory)
    lively(rules)
    model = rules["models"].pop("m")
    model["budgets"] = [{"window": "1d", "bytes": "60kB"}, {"window": "sliding 30d", "bytes": "900kB"}]
    model["weights"] = {"parameters": 1_000_000_000}
    model["theft_compression"] = 100
    rules["models"] = {"llama-70b": model}
    tenants = rules["tenants"]
    rules["tenants"] = {"acme": tenants["alice"], "guests": tenants["bob"]}
    for tenant in rules["tenants"].values():
        tenant["models"] = ["llama-70b"]
    return rules


async def talk(exchange: Exchange) -> None:
    """Now and then a backend dies."""
    number = int(exchange.request.json["messages"][0]["content"])
    if number % 17 == 16:
        return exchange.abort()
    return await say(TEXT * (2 + number % 5))(exchange)


def main(path: Path) -> None:
    """Write it."""
    backend = Backend(script=talk)
    with tempfile.TemporaryDirectory() as directory, chromium() as browser:
        gateway = Gateway(Path(directory), rules(backend.url, Path(directory))).start()
        for number in range(LOOKS * 6):
            gateway.ask(str(number), model="llama-70b", stream=number % 2 == 0)
            gateway.ask(
                str(number), model="llama-70b" if number % 3 else "gpt-5", key=BOB if number % 4 else "nobody's"
            )
            time.sleep(HISTORY_DISTANCE_S / 6)
        context = browser.new_context(viewport=DESKTOP, color_scheme="light")
        page = context.new_page()
        page.goto(gateway.admin_url)
        page.screenshot(path=path, full_page=True)
        gateway.close()
    backend.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
