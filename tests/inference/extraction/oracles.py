"""Writes oracles.json: what other people's libraries say about the constructed data. Run by `make oracles`.

The libraries live in an environment of their own (`requirements` below); the tests read the file only.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from baycomp import SignedRankTest
from concept_erasure import LeaceFitter
from constructed import SHAPES, pairs, scores
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).parent


def main():
    document = {"made_with": {name: version(name) for name in ("concept-erasure", "scikit-learn", "baycomp")}}
    for name, (count, dimensions) in SHAPES.items():
        positive, negative = pairs(count, dimensions)
        document[name] = {
            "pca_centred": PCA(n_components=1).fit(positive - negative).components_[0].tolist(),
            "logistic": {str(c): logistic(positive, negative, c) for c in (1.0, 0.01)},
            "leace": leace(positive, negative),
        }
    before, after = scores()
    document["wilcoxon"] = {
        str(rope): list(SignedRankTest(before, after, rope=rope, nsamples=200_000, random_state=1).probs())
        for rope in (0.0, 0.1, 0.3)
    }
    (HERE / "oracles.json").write_text(json.dumps(document, indent=1) + "\n")


def logistic(positive, negative, c):
    halves = (positive - negative) / 2
    model = LogisticRegression(C=c, fit_intercept=False, tol=1e-12, max_iter=100_000)
    model.fit(np.concatenate([halves, -halves]), [1] * len(halves) + [0] * len(halves))
    return (model.coef_[0] / np.linalg.norm(model.coef_[0])).tolist()


def leace(positive, negative):
    """The first four rows of the positive side after erasure."""
    x = torch.tensor(np.concatenate([positive, negative]))
    z = torch.tensor([1.0] * len(positive) + [0.0] * len(negative), dtype=torch.float64)
    # Their limit on the trace mixes in a second matrix, which is no longer of rank one; ours has no such limit.
    eraser = LeaceFitter.fit(x, z, constrain_cov_trace=False).eraser
    return eraser(x)[:4].tolist()


if __name__ == "__main__":
    sys.exit(main())
