"""The merge of docs/method.md done straightforwardly, to be timed against.

Every assignment is a dense one-hot matrix, every axis of every kernel is multiplied by
one, every similarity is computed anew from whole weight vectors, and zip looks at every
allowed pair again before every merge. For networks without nested labels, on whose axes
there is one label each.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from bench_matching import plain_zip

from jmudsc import PermutationSpec, Site, Units

Leaves = Mapping[str, np.ndarray]
Matrices = dict[str, np.ndarray]  # label -> (models, units, merged units)


def is_plain(spec: PermutationSpec) -> bool:
    """Whether labels are alone on their axes and none is nested."""
    alone = all(
        isinstance(axis, Units) or not axis.labels()
        for axes in spec.axes.values()
        for axis in axes
    )
    return alone and not any(label.parents for label in spec.labels.values())


def plain_match(
    spec: PermutationSpec,
    models: Sequence[Leaves],
    activation: Mapping[str, np.ndarray],
    alpha: float,
    key: jax.Array,
    sweeps: int,
) -> Matrices:
    """Match by mudsc-zip, with a fixed number of sweeps.

    Args:
        spec: a plain spec.
        models: per model, leaf path -> array.
        activation: label -> similarity of the activations of its stacked units.
        alpha: share of the weight similarity.
        key: for the order of the labels.
        sweeps: how many.

    Returns:
        One-hot matrices.
    """
    found = {name: _zipped(activation[name], len(models)) for name in spec.labels}
    names = list(spec.labels)
    for sweep in range(sweeps):
        order = jax.random.permutation(jax.random.fold_in(key, sweep), len(names))
        for number in np.asarray(order):
            name = names[number]
            weight = _correlation(_weight_vectors(spec, models, found, name))
            blend = alpha * weight + (1 - alpha) * activation[name]
            found[name] = _zipped(blend.astype(np.float32), len(models))
    return found


def plain_combine(
    spec: PermutationSpec, models: Sequence[Leaves], found: Matrices
) -> dict[str, np.ndarray]:
    """Average the models after multiplying every axis by its matrix."""
    return {
        path: np.mean(
            [
                _moved(spec, leaves[path], found, path, i, (), spec.consumed)
                for i, leaves in enumerate(models)
            ],
            axis=0,
        )
        for path in models[0]
    }


def _zipped(similarity: np.ndarray, models: int) -> np.ndarray:
    rows = plain_zip(similarity, models)
    return np.eye(rows.shape[1], dtype=np.float32)[rows]


def _weight_vectors(
    spec: PermutationSpec, models: Sequence[Leaves], found: Matrices, name: str
) -> np.ndarray:
    """Stack the weight vectors of the units; roles are the reverse of the merge's."""
    summed = frozenset(s for label in spec.labels.values() for s in label.sites)
    rows = []
    for i, leaves in enumerate(models):
        slices = []
        for site in spec.labels[name].sites:
            if site.path not in spec.statistics:
                leaf, roles = leaves[site.path], summed - spec.consumed
                moved = _moved(spec, leaf, found, site.path, i, (site,), roles)
                units = np.moveaxis(moved, site.axis, 0)
                slices.append(units.reshape(len(units), -1))
        rows.append(np.concatenate(slices, axis=1))
    return np.concatenate(rows)


def _moved(
    spec: PermutationSpec,
    leaf: np.ndarray,
    found: Matrices,
    path: str,
    model: int,
    still: Sequence[Site],
    summed: frozenset[Site],
) -> np.ndarray:
    """Multiply the axes of a leaf by U where they are summed over, else by N M."""
    for number, axis in enumerate(spec.axes[path]):
        site = Site(path, number)
        if isinstance(axis, Units) and site not in still:
            matrices = found[axis.label]
            matrix = matrices[model]
            if site not in summed:
                counts = matrices.sum(axis=(0, 1)) / len(matrices)
                matrix = matrix / np.where(counts > 0, counts, 1)
            leaf = np.moveaxis(np.tensordot(leaf, matrix, (number, 0)), -1, number)
    return leaf


def _correlation(vectors: np.ndarray) -> np.ndarray:
    centered = vectors - vectors.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centered, axis=1)
    centered /= np.where(norms > 0, norms, 1)[:, None]
    similarity = centered @ centered.T
    return (similarity + similarity.T) / 2
