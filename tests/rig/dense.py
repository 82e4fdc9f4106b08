"""The merge by its definition: one-hot matrices on every axis, in float64.

Axes may be fixed, the units of a label that is not nested, or a product of such.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jmudsc import PermutationSpec, Product, Site, Units


def one_hot(assignment: np.ndarray) -> np.ndarray:
    """Return U, one (units, merged units) matrix per model."""
    return (assignment[..., None] == np.arange(assignment.shape[-1])).astype(float)


def matrices(
    assignment: np.ndarray, shares: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return what consuming and producing axes are multiplied by: U, and N M.

    M is U divided by the number of units that went to each merged unit. With unequal
    shares a unit counts N times its model's share.
    """
    u = one_hot(assignment)
    counts = np.einsum("m,mjk->k", np.asarray(shares), u)
    return u, u / np.where(counts > 0, counts, 1)


def moved(
    spec: PermutationSpec,
    leaves: Mapping[str, np.ndarray],
    assignment: Mapping[str, np.ndarray],
    shares: Sequence[float],
    path: str,
    model: int,
    still: tuple[Site, str] | None = None,
) -> np.ndarray:
    """Bring a leaf of one model to the merged order, with one array axis per factor."""
    factors = _factors(spec, path)
    array = np.asarray(leaves[path], np.float64).reshape([f.size for _, f in factors])
    for position, (number, factor) in enumerate(factors):
        site = Site(path, number)
        if isinstance(factor, Units) and (site, factor.label) != still:
            consuming, producing = matrices(assignment[factor.label], shares)
            matrix = (consuming if site in spec.consumed else producing)[model]
            array = np.moveaxis(
                np.tensordot(array, matrix, (position, 0)), -1, position
            )
    return array


def combined(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, np.ndarray]],
    assignment: Mapping[str, np.ndarray],
    shares: Sequence[float],
) -> dict[str, np.ndarray]:
    """Merge models."""
    return {
        path: sum(
            share * moved(spec, leaves, assignment, shares, path, i)
            for i, (share, leaves) in enumerate(zip(shares, models, strict=True))
        ).reshape(np.shape(models[0][path]))
        for path in spec.axes
    }


def weight_vectors(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, np.ndarray]],
    assignment: Mapping[str, np.ndarray],
    label: str,
) -> np.ndarray:
    """Return the weight vectors of the stacked units, (models * units, entries).

    Other axes take the roles that they do not have in the merge.
    """
    sites = {site for record in spec.labels.values() for site in record.sites}
    spec = dataclasses.replace(spec, consumed=frozenset(sites - spec.consumed))
    shares = [1 / len(models)] * len(models)
    rows = []
    for i, leaves in enumerate(models):
        slices = []
        for site in spec.labels[label].sites:
            if site.path not in spec.statistics:
                position = next(
                    place
                    for place, (axis, factor) in enumerate(_factors(spec, site.path))
                    if axis == site.axis and label in factor.labels()
                )
                array = moved(
                    spec, leaves, assignment, shares, site.path, i, (site, label)
                )
                units = np.moveaxis(array, position, 0)
                slices.append(units.reshape(len(units), -1))
        rows.append(np.concatenate(slices, axis=1))
    return np.concatenate(rows)


def pearson(vectors: np.ndarray) -> np.ndarray:
    """Correlate rows; a row that never changes has correlation 0."""
    vectors = np.asarray(vectors, np.float64)
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    inverse = np.where(norms > 0, 1 / np.where(norms > 0, norms, 1), 0)
    return centred @ centred.T * np.outer(inverse, inverse)


def _factors(spec: PermutationSpec, path: str) -> list[tuple[int, object]]:
    """Return the factors of all axes of a leaf, with the axis each is of."""
    return [
        (number, factor)
        for number, axis in enumerate(spec.axes[path])
        for factor in (axis.factors if isinstance(axis, Product) else (axis,))
    ]
