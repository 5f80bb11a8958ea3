"""`loadtests` is no part of the installed package: it is imported from the checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
