"""An operator's own zstd dictionary: trained with a warning, used by the gateway, part of the code digest."""

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config import ConfigError, load

ROOT = Path(__file__).resolve().parents[2]
POLICY = """\
listen: 127.0.0.1:0
admin: 127.0.0.1:0
models:
  m: {{upstream: "http://127.0.0.1:1", weights: {{parameters: 70e9}}, theft_compression: 100,
      budgets: [{{window: lifetime, fraction: 10%}}]}}
tenants:
  t: {{keys: ["sha256:{digest}"], models: [m]}}
ledger: memory
dictionary: {dictionary}
"""


def weir(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_training_says_what_it_gained_and_the_policy_takes_the_file(tmp_path: Path) -> None:
    # Act
    documents = [str(path) for path in sorted((ROOT / "docs").glob("*.md"))]
    out = tmp_path / "own.dict"
    trained = weir("dictionary", "train", *documents, "--out", str(out), "--no-backend-wrote-these")

    # Assert
    assert trained.returncode == 0, trained.stderr
    assert "held out" in trained.stdout
    policy = tmp_path / "weir.yaml"
    policy.write_text(POLICY.format(digest="0" * 64, dictionary=out))
    assert load(policy).policy.dictionary == str(out)


def test_training_without_having_read_the_warning_is_refused(tmp_path: Path) -> None:
    refused = weir("dictionary", "train", str(ROOT / "README.md"), "--out", str(tmp_path / "own.dict"))
    assert refused.returncode == 2
    assert "--no-backend-wrote-these" in refused.stderr
    assert not (tmp_path / "own.dict").exists()


def test_too_few_samples_are_refused(tmp_path: Path) -> None:
    sample = tmp_path / "one.txt"
    sample.write_text("Only one paragraph.")
    refused = weir("dictionary", "train", str(sample), "--out", str(tmp_path / "own.dict"), "--no-backend-wrote-these")
    assert refused.returncode == 1
    assert "too few" in refused.stderr


@pytest.mark.parametrize("content", [None, b"not a dictionary"])
def test_a_dictionary_that_is_none_is_a_mistake_of_the_policy(tmp_path: Path, content: bytes | None) -> None:
    broken = tmp_path / "broken.dict"
    if content is not None:
        broken.write_bytes(content)
    policy = tmp_path / "weir.yaml"
    policy.write_text(POLICY.format(digest="0" * 64, dictionary=broken))
    with pytest.raises(ConfigError, match=r"dictionary: .*broken\.dict"):
        load(policy)
