"""Similarity of the units of a label: Pearson correlation of activations or weights."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jmudsc.lazy import LazyArray, Leaf, present
from jmudsc.matching.cross_moments import (
    correlation,
    correlation_there,
    cross_moments,
    cross_similarity,
    merge_cross_moments,
)
from jmudsc.matching.moment_cache import MomentCache
from jmudsc.matching.moments import merge_moments, Moments, moments_of_centered
from jmudsc.matching.products import are_large
from jmudsc.matching.row_updates import Chains, Link, mended, State
from jmudsc.matching.weight_vectors import others_on, unit_entries, unit_slices
from jmudsc.sharding import to_host
from jmudsc.spec.permutation_spec import PermutationSpec, Site

# Of matrices that have more entries, correlations are computed where they are.
_FEW = 2**22


def activation_similarity(
    moments: Moments,
) -> Float[np.ndarray, "*apart stacked stacked"]:
    """Correlate the activations of the stacked units of all models.

    Pearson correlation over all samples (Li et al. 2016, arXiv:1511.07543, section
    3.1).

    Args:
        moments: of one label, from `collect`, on disk or not.

    Returns:
        Values in [-1, 1]; a unit that never changes has 0 with every unit.
    """
    mean, count = moments.mean, np.float32(moments.count)
    comoment = present(moments.comoment)
    # Where those on disk were before: the bits are the same.
    if comoment.size > _FEW and not isinstance(moments.comoment, np.ndarray):
        return to_host(correlation_there(mean, comoment, count))
    return np.asarray(correlation(to_host(mean), to_host(comoment), count))


def weight_similarity(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, Leaf]],
    assignment: Mapping[str, np.ndarray],
    label: str,
    *,
    within: bool = True,
    cache: MomentCache | None = None,
    chains: Chains | None = None,
) -> Float[np.ndarray, "*apart stacked stacked"] | None:
    """Correlate the weight vectors of the stacked units of all models.

    A unit's weight vector is the concatenation of its slices at every site of the
    label, incoming and outgoing, norm scales and biases included, running statistics
    left out. Before that, every other axis of those leaves is brought to the merged
    order by the current assignment (Xu et al. 2024, arXiv:2403.01753, section 3.2):
    units of an axis that is summed over are averaged, units of any other are summed.
    That is the reverse of what the merge itself does, makes a difference for zip only,
    and was chosen by measurement (docs/method.md).

    Args:
        spec: the permutation spec.
        models: per model, leaf path -> array.
        assignment: the current one, label -> `int32[models, *outer units, units]`.
        label: the label to compare.
        within: whether to compare units of one model with each other too; if not, the
            blocks above the diagonal ones are all that is not 0. A one-to-one matching
            does not look at others.
        cache: what is known from earlier calls with these models; the result is the
            same without it.
        chains: of the search, by which moments are mended where few rows have moved;
            None to take all sums anew.

    Returns:
        Values in [-1, 1]; None if the label is only on leaves that are no
        evidence: running statistics, and leaves that move like others.
    """
    _, join, correlate = _comparison(within)
    leaves = _Leaves(spec, models, label, within, cache or MomentCache(budget=0))
    chains = None if leaves.large else chains
    seen: list[Any] = []
    for site, names in sites_read(spec, label).items():
        state = {name: assignment[name] for name in names}
        if chains is None:
            found = leaves.recall(site, state)
        else:
            found = leaves.follow(site, chains.advance(spec, label, site, state))
        seen = [join(seen[0], found) if seen else found]
    return correlate(seen[0]) if seen else None


def sites_read(spec: PermutationSpec, label: str) -> dict[Site, tuple[str, ...]]:
    """Return the sites at which the weights of a label are compared.

    Args:
        spec: the permutation spec.
        label: the label.

    Returns:
        For each the labels on whose assignment they depend, from `others_on`.
    """
    found = {}
    for site in spec.labels[label].sites:
        is_empty = not all(axis.size for axis in spec.axes[site.path])
        if is_empty or not spec.is_evidence(site.path):
            continue
        names = others_on(spec, label, site)
        if names is not None:
            found[site] = names
    return found


@dataclass(frozen=True)
class _Leaves:
    """The leaves that a label is read from, and what is known of them.

    Attributes:
        spec: the permutation spec.
        models: per model, leaf path -> array.
        label: the label.
        within: whether units of one model are compared with each other too.
        cache: what is known.
    """

    spec: PermutationSpec
    models: Sequence[Mapping[str, Leaf]]
    label: str
    within: bool
    cache: MomentCache

    @property
    def large(self) -> bool:
        """Whether products are large, which is so at all sites."""
        sites = self.spec.labels[self.label].sites
        axes = [self.spec.axes[path] for path in {site.path for site in sites}]
        numbers = sum(math.prod(axis.size for axis in each) for each in axes)
        units = math.prod(self.spec.compared_shape(self.label)[1])
        return are_large(len(self.models), units, numbers)

    def recall(self, site: Site, state: State) -> Any:
        """Return moments in a state, computed anew if they are not known."""
        key = tuple(rows.tobytes() for rows in state.values())
        return self.cache.recall(self._of(site), key, lambda: self._anew(site, state))

    def follow(self, site: Site, links: Sequence[Link]) -> Any:
        """Return moments at the end of a chain, from the last of it that is known."""
        of = self._of(site)

        def compute() -> Any:
            known = [self.cache.known(of, link.key) for link in links]
            start = max((n for n, x in enumerate(known) if x is not None), default=0)
            found = known[start] or self._anew(site, links[0].state)
            for one, other in itertools.pairwise(links[start:]):
                found = self._mended(found, site, one.state, other)
            return found

        return self.cache.recall(of, links[-1].key, compute)

    def _of(self, site: Site) -> Any:
        return self.label, site, self.within

    def _anew(self, site: Site, state: State) -> Any:
        of, _, _ = _comparison(self.within)
        parts = unit_slices(self.spec, self.models, state, self.label, site)
        found = of(parts, self.large)
        if isinstance(self.models[0][site.path], LazyArray):
            # Or leaves are read faster than their products are taken, and pile up.
            jax.block_until_ready(list(vars(found).values()))
        return found

    def _mended(self, found: Any, site: Site, before: State, link: Link) -> Any:
        moved = link.moved
        assert moved is not None
        old, new = (
            unit_entries(
                self.spec, self.models, state, self.label, site, (moved.label, merged)
            )
            for state, merged in ((before, moved.old), (link.state, moved.new))
        )
        return mended(found, old, new)


def _comparison(
    within: bool,
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., np.ndarray]]:
    """Return how moments are computed, combined, and turned into similarities."""
    if not within:
        return cross_moments, merge_cross_moments, cross_similarity
    return moments_of_centered, merge_moments, activation_similarity
