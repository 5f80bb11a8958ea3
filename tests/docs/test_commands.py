"""The commands that the documents tell people to run exist, with the options that are given."""

import re
from pathlib import Path

import pytest

from tests.e2e.processes import weir

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(
    r"(?:^|`|/)weir ((?:audit|ledger|steer) [a-z][a-z-]*|check|keys [a-z-]+|status|claims|doctor)\b([^`\n]*)",
    re.MULTILINE,
)


def used() -> dict[str, set[str]]:
    """The options that are used with each command, in whatever document."""
    options: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        for command, rest in COMMAND.findall(document.read_text()):
            options.setdefault(command, set()).update(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", rest.split("#")[0]))
    return options


@pytest.mark.parametrize("command", sorted(used()))
def test_a_command_in_the_documents_exists_with_its_options(command):
    done = weir(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert {option for option in used()[command] if option not in done.stdout} == set()


def test_the_commands_of_the_audit_log_are_all_documented():
    assert {
        "audit verify",
        "audit show",
        "audit prove",
        "audit check-proof",
        "audit fold",
        "audit export",
        "audit rekey",
    } <= used().keys()


def test_the_doctors_options_are_all_documented():
    described = weir("doctor", "--help").stdout
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", described)) - {"--help"} <= used()["doctor"]


def test_the_commands_of_steering_are_all_in_their_table():
    text = (ROOT / "docs/steering.md").read_text()
    rows = re.findall(r"^\| (`.*`) \|", text.split("## The commands")[1].split("##")[0], re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([a-z]+)`", row)}
    offered = set(re.findall(r"^    ([a-z]+)(?: |$)", weir("steer", "--help").stdout, re.MULTILINE))
    assert documented == offered
