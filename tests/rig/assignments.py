"""Models and assignments drawn for the tests of what is done by an assignment."""

import numpy as np
import tiny


def draw(name, models):
    return [tiny.variables(tiny.NETS[name], seed) for seed in range(models)]


def stay(spec, models):
    return {
        name: np.broadcast_to(
            np.arange(label.size, dtype=np.int32), (models, *spec.row_shape(name))
        ).copy()
        for name, label in spec.labels.items()
    }


def shuffled(spec, models, seed=0):
    generator = np.random.default_rng(seed)
    return {
        name: generator.permuted(rows, axis=-1)
        for name, rows in stay(spec, models).items()
    }


def zipped(spec, models, seed=0):
    """Draw an assignment in which every merged unit has a member in some model."""
    generator = np.random.default_rng(seed)
    rows = {}
    for name, label in spec.labels.items():
        spare = generator.integers(label.size, size=(models - 1) * label.size)
        flat = np.concatenate([np.arange(label.size), spare])
        rows[name] = generator.permutation(flat).reshape(models, -1).astype(np.int32)
    return rows
