"""Constructed activations for which the truth is known. Seeded; needs numpy only, so that the oracles can use it too."""

import numpy as np

SHAPES = {"more rows than dimensions": (60, 12), "fewer rows than dimensions": (14, 40)}


def pairs(count: int, dimensions: int, *, seed: int = 7):
    """(positive, negative), each [count, dimensions]: a planted difference along axis 0, pairs that share their topic,
    noise along axis 1 that varies from pair to pair more than the planted difference does, and a common offset."""
    rng = np.random.default_rng(seed)
    topic = rng.normal(size=(count, dimensions)) * 3 + 10
    planted = np.zeros(dimensions)
    planted[0] = 2.0
    swing = np.zeros((count, dimensions))
    swing[:, 1] = rng.normal(size=count) * 5
    noise = rng.normal(size=(2, count, dimensions)) * 0.5
    return topic + planted / 2 + swing / 2 + noise[0], topic - planted / 2 - swing / 2 + noise[1]


def scores(*, seed: int = 3):
    """Before and after of 24 samples, most of them a little better after."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=24)
    return before, before + rng.normal(loc=0.25, scale=0.6, size=24)
