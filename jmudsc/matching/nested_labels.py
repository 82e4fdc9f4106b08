"""Nested labels: match a label together with the labels nested in it.

The units of a label with nested labels (heads with their channels) are matched in
two levels: every pair of units is scored by the best that their nested units can do,
the units are matched on those scores, and the nested matchings of the chosen pairs are
kept (Xu et al. 2024, arXiv:2403.01753, section 3.4). Recursion makes it any number of
levels. For zip only the innermost units are zipped: units with nested labels are paired
one-to-one first, then what is nested in them is zipped set by set, each with its own
width and budget.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jmudsc.matching.match_options import MatchOptions
from jmudsc.matching.multi_model import best_pairs
from jmudsc.matching.pairing import ALIGN, Candidates
from jmudsc.spec.permutation_spec import PermutationSpec

Unit = tuple[int, ...]


def families(spec: PermutationSpec) -> list[list[str]]:
    """Group the labels into families that must be matched together.

    Args:
        spec: the permutation spec.

    Returns:
        One list per label that is nested in no single other label: it, then everything
        nested in it. A label nested in two unrelated labels starts a family after both.
    """
    roots = [
        n for n in spec.labels if not any(n in spec.children(m) for m in spec.labels)
    ]
    roots.sort(key=lambda name: len(spec.labels[name].parents))
    return [_descendants(spec, root) for root in roots]


def match_family(
    spec: PermutationSpec,
    family: Sequence[str],
    similarity: Mapping[str, np.ndarray],
    assignment: Mapping[str, np.ndarray],
    options: MatchOptions,
) -> dict[str, np.ndarray]:
    """Match the units of a family of labels.

    Args:
        spec: the permutation spec.
        family: from `families`; a fixed label in it stays in place.
        similarity: label -> (models*units, models*units), the units of a nested label
            running over the units of its outer labels first, where those of outer
            labels that stay in place are axes that lead; a label without evidence of
            its own may be missing if it is fixed or labels are nested in it.
        assignment: the current one; gives the number of models and, for a family
            nested in other labels, where their units go.
        options: the method, which zips the innermost units or aligns them, and its
            settings.

    Returns:
        The new assignment of each label of the family.
    """
    models = len(assignment[family[0]])
    grids = {}
    for name, matrix in similarity.items():
        apart, compared = spec.compared_shape(name)
        shape = models, *compared
        grids[name] = matrix.reshape(apart + shape + shape)
    matching = _Matching(spec, grids, options)
    found = {name: np.empty_like(assignment[name]) for name in family}
    root = family[0]
    outer = spec.labels[root].parents
    for merged in np.ndindex(*spec.row_shape(root)[:-1]):
        own = _members(spec, assignment, outer, merged, models)
        _fill(found, matching, root, merged, own)
    return found


@dataclass(frozen=True)
class _Matching:
    """How the units of a family are matched.

    Attributes:
        spec: the permutation spec.
        grids: label -> similarity, with an axis for each outer label, model, and unit.
        options: the method and its settings.
    """

    spec: PermutationSpec
    grids: Mapping[str, np.ndarray]
    options: MatchOptions

    def rows(self, name: str, own: Sequence[Unit]) -> np.ndarray:
        """Match the units of a label under one set of outer units, one per model."""
        spec, models, units = self.spec, len(own), self.spec.labels[name].size
        if spec.labels[name].fixed:
            return np.tile(np.arange(units), (models, 1))

        def between(i: int, j: int) -> np.ndarray:
            return _scores(spec, self.grids, name, (i, j), (own[i], own[j]))

        def stacked() -> np.ndarray:
            return _stacked(spec, name, self.grids[name], own)

        pairing = self.options.method.pairing or ALIGN
        if pairing.merges_own and not is_innermost(spec, name):
            pairing = ALIGN
        candidates = Candidates(models, units, between, stacked)
        return pairing.pair(candidates, self.options.of_pairing)


def _fill(
    found: Mapping[str, np.ndarray],
    matching: _Matching,
    name: str,
    merged: Unit,
    own: Sequence[Unit],
) -> None:
    """Match a label and all nested in it, under one set of outer units."""
    row = matching.rows(name, own)
    found[name][(slice(None), *merged)] = row
    spec = matching.spec
    for child in spec.children(name):
        for unit in range(spec.labels[name].size):
            members = [int(np.flatnonzero(r == unit)[0]) for r in row]
            below = [(*o, member) for o, member in zip(own, members, strict=True)]
            _fill(found, matching, child, (*merged, unit), below)


def is_innermost(spec: PermutationSpec, name: str) -> bool:
    """Whether nothing is nested in a label, alone or together with other labels.

    Args:
        spec: the permutation spec.
        name: the label.
    """
    return not any(name in label.parents for label in spec.labels.values())


def _descendants(spec: PermutationSpec, name: str) -> list[str]:
    below = [d for child in spec.children(name) for d in _descendants(spec, child)]
    return [name, *below]


def _members(
    spec: PermutationSpec,
    assignment: Mapping[str, np.ndarray],
    outer: Sequence[str],
    merged: Unit,
    models: int,
) -> list[Unit]:
    """Return each model's own units that went to given merged units of outer labels."""
    place = dict(zip(outer, merged, strict=True))
    return [
        tuple(
            int(
                np.flatnonzero(
                    assignment[o][(model, *(place[q] for q in spec.labels[o].parents))]
                    == place[o]
                )[0]
            )
            for o in outer
        )
        for model in range(models)
    ]


def stacked_shape(spec: PermutationSpec, name: str, models: int) -> tuple[int, ...]:
    """Return the shape of the stacked units of a label, as `Moments` has them.

    Args:
        spec: the permutation spec.
        name: the label.
        models: number of models.

    Returns:
        The units of outer labels that stay in place, then all others of all models.
    """
    apart, compared = spec.compared_shape(name)
    return *apart, models * math.prod(compared)


def _stacked(
    spec: PermutationSpec, name: str, grid: np.ndarray, own: Sequence[Unit]
) -> np.ndarray:
    """Cut the rows and columns of one set of outer units, one per model."""
    units, models = grid.shape[-1], range(len(own))
    stack = [
        [_block(spec, name, grid, (i, j), (own[i], own[j])) for j in models]
        for i in models
    ]
    return np.block(stack).reshape(len(own) * units, len(own) * units)


def _block(
    spec: PermutationSpec,
    name: str,
    grid: np.ndarray,
    models: tuple[int, int],
    own: tuple[Unit, Unit],
) -> np.ndarray:
    """Cut the rows of one model and the columns of another, under given outer units."""
    apart = len(spec.compared_shape(name)[0])
    (one, other), (ours, theirs) = models, own
    place = *ours[:apart], one, *ours[apart:], slice(None), other, *theirs[apart:]
    return grid[place]


def _scores(
    spec: PermutationSpec,
    grids: Mapping[str, np.ndarray],
    name: str,
    models: tuple[int, int],
    own: tuple[Unit, Unit],
) -> np.ndarray:
    """Score every pair of units: own similarity plus the best of the nested units."""
    if not spec.children(name):
        return _block(spec, name, grids[name], models, own)
    units = spec.labels[name].size
    scores = np.zeros((units, units))
    if name in grids:
        scores += _block(spec, name, grids[name], models, own)
    for child in spec.children(name):
        for j, k in np.ndindex(units, units):
            units_in = (*own[0], j), (*own[1], k)
            inner = _scores(spec, grids, child, models, units_in)
            rows, columns = _pairs(spec, child, inner)
            scores[j, k] += inner[rows, columns].sum()
    return scores


def _pairs(
    spec: PermutationSpec, name: str, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if spec.labels[name].fixed:
        return np.arange(len(scores)), np.arange(len(scores))
    return best_pairs(scores)
