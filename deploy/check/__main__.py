"""`make deploy-check`: every validator, and what it has against what. `python -m deploy.check [NAME…]` runs some."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from deploy.check.tools import ToolMissing
from deploy.check.validators import VALIDATORS

TREE = Path(__file__).parents[2]


def main(names: list[str]) -> int:
    """Run them; returns the exit status: 1 if any file is not valid, or a validator is missing."""
    unknown = set(names) - {validator.__name__ for validator in VALIDATORS}
    if unknown:
        sys.stderr.write(f"no validator is called {', '.join(sorted(unknown))}\n")
        return 2
    bad = 0
    for validator in VALIDATORS:
        if names and validator.__name__ not in names:
            continue
        begun_s = time.monotonic()
        try:
            found = validator(TREE)
        except ToolMissing as missing:
            found = [str(missing)]
        bad += bool(found)
        print(f"{validator.__name__:12} {'NOT VALID' if found else 'valid':10} {time.monotonic() - begun_s:5.1f} s")
        for complaint in found:
            print(f"{complaint}\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
