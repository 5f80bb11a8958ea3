"""kustomize's base is what the chart makes of its smallest values: one source, two ways to install.

`python -m deploy.check.base` writes it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from deploy.check.tools import tool
from deploy.check.validators import CHART, NAMESPACE, RELEASE

TREE = Path(__file__).parents[2]
BASE = Path("deploy/kustomize/base")
VALUES = "ci/two-pods-values.yaml"
HEAD = """\
# Written by `make kustomize` from deploy/helm/weir with ci/two-pods-values.yaml. Do not edit: overlays are the place.
"""


def rendered(tree: Path) -> str:
    """The base as it should be."""
    command = [tool("helm"), "template", RELEASE, str(tree / CHART), "--namespace", NAMESPACE]
    done = subprocess.run(
        [*command, "--values", str(tree / CHART / VALUES)], capture_output=True, text=True, check=True, timeout=60
    )
    # These two say that helm manages the objects, which it does not here.
    lines = (
        line for line in done.stdout.splitlines()
        if not line.strip().startswith(("helm.sh/chart:", "app.kubernetes.io/managed-by:", "# Source:"))
    )  # fmt: skip
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    (TREE / BASE / "weir.yaml").write_text(rendered(TREE))
