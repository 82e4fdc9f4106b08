"""Specs of labels that are on no leaf, and similarities drawn for them."""

import numpy as np

from jmudsc import Label, PermutationSpec


def spec_of(**labels):
    """Make a spec of labels that are on no leaf: name=(size, *parents)."""
    return PermutationSpec(
        axes={},
        labels={
            name: Label(size, tuple(up), ()) for name, (size, *up) in labels.items()
        },
    )


def draw(seed, spec, models, without=()):
    generator = np.random.default_rng(seed)
    similarity = {}
    for name in spec.labels:
        if name not in without:
            total = models * int(np.prod(spec.row_shape(name)))
            s = generator.uniform(-1, 1, (total, total)).astype(np.float32)
            similarity[name] = np.maximum(s, s.T)
    return similarity
