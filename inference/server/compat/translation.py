"""A request of another spelling in ours, and how what is wrong with it is said in its own words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from inference.steering.spec import SteeringSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation:
    """`params`: JSON paths of ours and the ones they came from. What is below a path keeps its ending."""

    spec: SteeringSpec
    params: Mapping[str, str]

    def theirs(self, param: str | None) -> str | None:
        """A path of ours in their spelling; the longest that is known decides, and what is not known stays."""
        if param is None:
            return None
        for ours in sorted(self.params, key=len, reverse=True):
            rest = param.removeprefix(ours)
            if param.startswith(ours) and rest[:1] in ("", ".", "["):
                return self.params[ours] + rest
        return param
