"""How Hypothesis runs: never judged by the clock of a shared machine, and the same examples every time where CI says so."""

import os

from hypothesis import settings

settings.register_profile("explore", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "explore")
