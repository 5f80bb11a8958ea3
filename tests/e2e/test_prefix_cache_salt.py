"""What one tenant asked must not make another one's answer come sooner, where the policy says so."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.model_server import MODEL, model_policy, model_server
from tests.e2e.processes import ALICE, BOB, Gateway

LONG = "Count the words of this sentence and then say how many there are of them. " * 12
KNOWN = re.compile(r"^weir_inference_cached_prompt_tokens_total (\d+)", re.MULTILINE)


@pytest.fixture(scope="module")
def backend(prepared_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with model_server(prepared_model, tmp_path_factory.mktemp("backend")) as address:
        yield address


def known(backend: str) -> int:
    """Prompt tokens that the backend has not had to run because it had run them before."""
    with urllib.request.urlopen(f"{backend}/metrics", timeout=5) as page:
        found = KNOWN.search(page.read().decode())
    assert found is not None
    return int(float(found.group(1)))


def grown(backend: str, gateway: Gateway, key: str, prompt: str) -> int:
    before = known(backend)
    answer = gateway.ask(prompt, key=key, model=MODEL, max_tokens=1, temperature=0)
    assert answer.status == 200, answer.body
    return known(backend) - before


@pytest.mark.parametrize("salted", [True, False])
def test_a_prompt_that_one_tenant_asked_is_known_to_another_only_without_a_salt(
    backend: str, prepared_model: Path, tmp_path: Path, salted: bool
) -> None:
    rules = model_policy(backend, prepared_model, tmp_path)
    rules["models"][MODEL]["prefix_cache_salt"] = salted
    with closing(Gateway(tmp_path, rules).start()) as gateway:
        assert grown(backend, gateway, ALICE, LONG) == 0
        assert (grown(backend, gateway, BOB, LONG) == 0) is salted
        assert grown(backend, gateway, ALICE, LONG) > 100, "its own prompt is known to whoever asks it again"
