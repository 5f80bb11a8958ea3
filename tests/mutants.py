"""What `mutmut run` left in `mutants/`, as a table: how many changes to the budget and lease code no test notices.

`python tests/mutants.py` exits with 1 where fewer than 95 % of a file's mutants are killed. Survivors are shown as diffs.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

SHARE_MIN = 0.95
KILLED = ("killed", "timeout")  # a mutant that never ends is noticed as well
MUTMUT = str(Path(sys.executable).with_name("mutmut"))


def statuses(results: str) -> dict[str, str]:
    """The status of every mutant by name, from what `mutmut results --all true` prints."""
    return dict(line.strip().split(": ") for line in results.splitlines() if line.strip())


def by_file(mutants: Mapping[str, str]) -> dict[str, Counter[str]]:
    """How many mutants of each file have which status. A mutant is called `package.module.function__mutmut_number`."""
    files: dict[str, Counter[str]] = {}
    for name, status in mutants.items():
        files.setdefault(name.rpartition(".")[0].replace(".", "/") + ".py", Counter())[status] += 1
    return files


def share(counts: Counter[str]) -> float:
    """The part of the mutants that some test notices. What was not tested, or ended in another way, is not killed."""
    return sum(counts[status] for status in KILLED) / counts.total()


def table(files: Mapping[str, Counter[str]]) -> Iterable[str]:
    """A line for every file."""
    yield f"{'file':24}{'mutants':>9}{'killed':>9}{'timeouts':>10}{'survived':>10}{'share':>9}"
    for file, counts in files.items():
        killed, timeouts = (counts[status] for status in KILLED)
        rest = counts.total() - killed - timeouts
        yield f"{file:24}{counts.total():9}{killed:9}{timeouts:10}{rest:10}{share(counts):9.1%}"


def mutmut(*arguments: str) -> str:
    """The output of one of its commands."""
    return subprocess.run([MUTMUT, *arguments], check=True, capture_output=True, text=True).stdout


def main() -> int:
    """The survivors, the table, the exit status."""
    mutants = statuses(mutmut("results", "--all", "true"))
    for name in (name for name, status in mutants.items() if status not in KILLED):
        print(mutmut("show", name))
    files = by_file(mutants)
    print("\n".join(table(files)))
    return 0 if files and all(share(counts) >= SHARE_MIN for counts in files.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
