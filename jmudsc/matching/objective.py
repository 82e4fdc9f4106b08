"""Objective: the mean similarity of the units that share a merged unit."""

from collections.abc import Mapping

import numpy as np

from jmudsc.matching.nested_labels import stacked_shape
from jmudsc.spec.permutation_spec import PermutationSpec


def mean_similarity(
    spec: PermutationSpec,
    name: str,
    similarity: np.ndarray,
    assignment: Mapping[str, np.ndarray],
) -> float:
    """Average the similarity over all pairs of units that share a merged unit.

    Args:
        spec: the permutation spec.
        name: the label.
        similarity: (models*units, models*units), of its stacked units; outer
            labels that stay in place are axes that lead.
        assignment: of this label and its outer labels.

    Returns:
        The mean, in [-1, 1]; 0 if no two units share one.
    """
    models = len(assignment[name])
    apart, _ = spec.compared_shape(name)
    merged = np.stack(
        [merged_units(spec, assignment, name, m) for m in range(models)], len(apart)
    )
    stacked = stacked_shape(spec, name, models)[-1]
    total, pairs = 0.0, 0
    for units, values in zip(
        merged.reshape(-1, stacked),
        similarity.reshape(-1, stacked, stacked),
        strict=True,
    ):
        found = _shared(units, values)
        total, pairs = total + float(found.sum(dtype=np.float64)), pairs + len(found)
    return total / pairs if pairs else 0.0


def _shared(merged: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Return the similarities of all pairs of stacked units with one merged unit."""
    order = merged.argsort(kind="stable")
    found = [np.empty(0, similarity.dtype)]
    for apart in range(1, len(order)):
        same = merged[order[:-apart]] == merged[order[apart:]]
        if not same.any():
            break
        found.append(similarity[order[:-apart][same], order[apart:][same]])
    return np.concatenate(found)


def merged_units(
    spec: PermutationSpec, assignment: Mapping[str, np.ndarray], name: str, model: int
) -> np.ndarray:
    """Number the merged unit of every unit of a model, outer units included.

    Args:
        spec: the permutation spec.
        assignment: of the label and its outer labels.
        name: the label.
        model: the model.

    Returns:
        `int[*own outer units, units]`, row-major numbers of merged units.
    """
    labels = (*spec.labels[name].parents, name)
    sizes = [spec.labels[label].size for label in labels]
    grid = np.indices(sizes, sparse=True)
    merged: dict[str, np.ndarray] = {}
    for label, own in zip(labels, grid, strict=True):
        outer = [merged[outer] for outer in spec.labels[label].parents]
        merged[label] = assignment[label][(model, *outer, own)]
    return np.ravel_multi_index(np.broadcast_arrays(*merged.values()), sizes)
