"""Images for the tiny MLP, and what its hidden layers make of them."""

import functools

import numpy as np
import tiny


@functools.cache
def images(size=64):
    return tiny.batch(tiny.MLP, 0, size)


def preactivations(v, x):
    """Return what the two hidden layers of the MLP compute before their ReLU."""
    v = {path: np.asarray(leaf, float) for path, leaf in v.items()}
    first = x @ v["a/kernel"] + v["a/bias"]
    second = np.maximum(first, 0) @ v["b/kernel"] + v["b/bias"]
    return {"a": first, "b": second}
