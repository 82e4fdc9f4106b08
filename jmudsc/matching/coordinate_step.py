"""Coordinate step: match one family of labels anew, all others as they are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jmudsc.lazy import LazyArray, Leaf, present
from jmudsc.matching.journal import Journal
from jmudsc.matching.match_options import MatchOptions
from jmudsc.matching.moment_cache import MomentCache
from jmudsc.matching.nested_labels import match_family, stacked_shape
from jmudsc.matching.objective import mean_similarity
from jmudsc.matching.row_updates import Chains
from jmudsc.matching.similarity import groups_mended, weight_similarity
from jmudsc.matching.weight_vectors import others_on
from jmudsc.spec.permutation_spec import PermutationSpec

# Rows of similarities that are blended at once.
_ROWS = 64
# What a step is kept as in a journal: the objective of each label, and assignments.
_REACHED, _TO = "reached", "to/"


@dataclass(frozen=True)
class Search:
    """A matching problem and how it is solved: all that no step changes.

    Attributes:
        spec: the permutation spec.
        leaves: per model, leaf path -> array.
        activation: label -> similarity of activations, lazy where it has no room in
            memory; a label may be missing.
        options: the method and its settings.
        alpha: share of the weight similarity, in [0, 1].
        cache: what is known of weights from earlier steps.
        journal: where steps are kept; None for nowhere.
        chains: how moments of weights came about in this search; None where they are
            too large to be kept, so that all sums are taken anew.
        evidence: label -> digest of its `activation`, to tell the journal.
    """

    spec: PermutationSpec
    leaves: Sequence[Mapping[str, Leaf]]
    activation: Mapping[str, np.ndarray | LazyArray]
    options: MatchOptions
    alpha: float
    cache: MomentCache
    journal: Journal | None
    evidence: Mapping[str, bytes]
    chains: Chains | None = None


@dataclass(frozen=True)
class Step:
    """What a step found.

    Attributes:
        rows: the new assignment of each label of the family.
        reached: the objective of each label that has similarities of its own.
    """

    rows: dict[str, np.ndarray]
    reached: list[float]


def take_step(
    search: Search, family: Sequence[str], assignment: Mapping[str, np.ndarray]
) -> Step:
    """Match one family, or recall from the journal what that came to.

    Args:
        search: the problem.
        family: labels that are matched together, from `families`.
        assignment: the current one of all labels.

    Returns:
        The step.
    """
    if search.journal is None:
        return solve(search, family, assignment)

    def state() -> Iterator[bytes]:
        pairing, own = search.options.method.pairing, search.options.of_pairing
        decisive = search.alpha, pairing and pairing.name, own, family
        yield repr(decisive).encode()
        for name in inputs_of(search.spec, family):
            yield assignment[name].tobytes()
        yield from _advanced(search, family, assignment)
        yield from (search.evidence[n] for n in family if n in search.evidence)

    def compute() -> dict[str, np.ndarray]:
        found = solve(search, family, assignment)
        moved = {f"{_TO}{name}": row for name, row in found.rows.items()}
        return {_REACHED: np.array(found.reached), **moved}

    kept = search.journal.recall(state, compute)
    reached = kept.pop(_REACHED).tolist()
    return Step({name.removeprefix(_TO): row for name, row in kept.items()}, reached)


def _advanced(
    search: Search, family: Sequence[str], assignment: Mapping[str, np.ndarray]
) -> Iterator[bytes]:
    """Go on with the chains of a family, whether or not its step is recalled.

    Yields:
        What tells the chains apart.
    """
    if search.chains is None:
        return
    spec = search.spec
    for name in family:
        for sites, others in groups_mended(spec, name, len(search.leaves)).items():
            state = {other: assignment[other] for other in others}
            yield search.chains.advance(spec, name, sites, state)[-1].key.encode()


def solve(
    search: Search, family: Sequence[str], assignment: Mapping[str, np.ndarray]
) -> Step:
    """Match one family by the blend of its similarities.

    Args:
        search: the problem.
        family: labels that are matched together, from `families`.
        assignment: the current one of all labels.

    Returns:
        The step.
    """
    similarity = {
        name: blend
        for name in family
        if (blend := blend_of(search, name, assignment)) is not None
    }
    rows = match_family(search.spec, family, similarity, assignment, search.options)
    now = {**assignment, **rows}
    reached = [mean_similarity(search.spec, n, s, now) for n, s in similarity.items()]
    return Step(rows, reached)


def blend_of(
    search: Search, name: str, assignment: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """Blend the similarities of weights and of activations of one label.

    A label that one space says nothing about is matched in the other; one that neither
    knows keeps its units in place.

    Args:
        search: the problem.
        name: the label.
        assignment: the current one of all labels.

    Returns:
        `alpha * weight + (1 - alpha) * activation`, of stacked units; None for a label
        that has no evidence of its own.
    """
    if not _has_evidence(search.spec, name):
        return None
    known, weight = search.activation.get(name), None
    if search.alpha > 0 or known is None:
        within, cache = search.options.method.zips, search.cache
        weight = weight_similarity(
            search.spec,
            search.leaves,
            assignment,
            name,
            within=within,
            cache=cache,
            chains=search.chains,
        )
    activation = present(known)
    if weight is not None and activation is not None:
        return _blended(weight, activation, search.alpha)
    if weight is not None or activation is not None:
        return activation if weight is None else weight
    is_bare = not search.spec.children(name)
    return _in_place(search.spec, name, len(search.leaves)) if is_bare else None


def _blended(weight: np.ndarray, activation: np.ndarray, share: float) -> np.ndarray:
    """Blend two matrices, some rows at once, so that they stay in a cache."""
    blend, alpha = np.empty_like(weight), np.float32(share)
    for start in range(0, weight.shape[-2], _ROWS):
        rows = ..., slice(start, start + _ROWS), slice(None)
        blend[rows] = alpha * weight[rows] + (1 - alpha) * activation[rows]
    return blend


def inputs_of(spec: PermutationSpec, family: Sequence[str]) -> list[str]:
    """Return the labels whose assignment decides how a family is matched.

    Args:
        spec: the permutation spec.
        family: from `families`.
    """
    found = set(spec.labels[family[0]].parents)
    for name in family:
        for site in spec.labels[name].sites:
            found.update(others_on(spec, name, site) or ())
    return [name for name in spec.labels if name in found]


def _in_place(spec: PermutationSpec, name: str, models: int) -> np.ndarray:
    """Return similarities by which every unit is like those of its own position."""
    shape = stacked_shape(spec, name, models)
    own = np.eye(shape[-1] // models, dtype=np.float32)
    return np.broadcast_to(np.tile(own, (models, models)), (*shape, shape[-1]))


def _has_evidence(spec: PermutationSpec, name: str) -> bool:
    """Whether a label has evidence of its own, besides what is nested in it.

    A fixed label moves with its outer labels and is evidence of their units; one that
    has no outer labels that can move tells nothing.
    """
    if all(spec.labels[n].fixed for n in (name, *spec.labels[name].parents)):
        return False
    nested = {
        site.path for child in spec.children(name) for site in spec.labels[child].sites
    }
    return any(site.path not in nested for site in spec.labels[name].sites)
