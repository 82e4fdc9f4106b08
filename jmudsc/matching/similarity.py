"""Similarity of the units of a label: Pearson correlation of activations or weights."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from jmudsc.lazy import Leaf, present
from jmudsc.matching.cross_moments import (
    correlation,
    correlation_there,
    cross_moments_over,
    cross_similarity,
)
from jmudsc.matching.moment_cache import MomentCache
from jmudsc.matching.moments import Centered, Moments, moments_over
from jmudsc.matching.products import are_large
from jmudsc.matching.row_updates import Chains, Link, mended, Sites, State
from jmudsc.matching.weight_vectors import others_on, unit_entries, unit_slices
from jmudsc.sharding import to_host
from jmudsc.spec.permutation_spec import PermutationSpec, Site

# Of matrices that have more entries, correlations are computed where they are.
_FEW = 2**22
# Samples are kept instead of their products where they are so many times fewer.
_THIN = 64


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
    over, correlate = _comparison(within)
    leaves = _Leaves(spec, models, label, within, cache or MomentCache(budget=0))
    groups, large = groups_read(spec, label), leaves.large
    if not groups:
        return None
    chains = None if large else chains
    known, few = [], []
    for names, sites in groups.items():
        state = {name: assignment[name] for name in names}
        if is_thin(spec, label, sites, len(models)):
            few += leaves.samples(sites, state)
        elif chains is None:
            known.append(leaves.recall(sites, state))
        else:
            links = chains.advance(spec, label, sites, state)
            known.append(leaves.follow(sites, links))
    return correlate(over(len(models), few, known, large))


def groups_read(spec: PermutationSpec, label: str) -> dict[tuple[str, ...], Sites]:
    """Group the sites at which a label is read by the labels they depend on.

    Args:
        spec: the permutation spec.
        label: the label.

    Returns:
        Labels, as `sites_read` gives them -> the sites that depend on just these.
    """
    groups: dict[tuple[str, ...], Sites] = {}
    for site, names in sites_read(spec, label).items():
        groups[names] = (*groups.get(names, ()), site)
    return groups


def groups_mended(
    spec: PermutationSpec, label: str, models: int
) -> dict[Sites, tuple[str, ...]]:
    """Return the groups of sites of which moments are kept, and mended.

    Args:
        spec: the permutation spec.
        label: the label.
        models: how many.

    Returns:
        For each the labels that it depends on.
    """
    groups = groups_read(spec, label).items()
    return {
        sites: names
        for names, sites in groups
        if not is_thin(spec, label, sites, models)
    }


def is_thin(spec: PermutationSpec, label: str, sites: Sites, models: int) -> bool:
    """Whether samples of the units at some sites are far fewer than their products.

    Then the samples are kept, such as those of biases and norms, and their products are
    taken whenever they are needed.

    Args:
        spec: the permutation spec.
        label: the label.
        sites: where it is read.
        models: how many.
    """
    axes = [spec.axes[site.path] for site in sites]
    numbers = sum(math.prod(axis.size for axis in each) for each in axes)
    apart, compared = map(math.prod, spec.compared_shape(label))
    return _THIN * numbers <= models * apart * compared**2


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

    def samples(self, sites: Sites, state: State) -> list[list[Centered]]:
        """Return samples of the units in a state, site by site."""
        read = functools.partial(self._read, sites, state)
        return self.cache.recall(self._of(sites), _bytes_of(state), lambda: [*read()])

    def recall(self, sites: Sites, state: State) -> Any:
        """Return moments in a state, computed anew if they are not known."""
        anew = functools.partial(self._anew, sites, state)
        return self.cache.recall(self._of(sites), _bytes_of(state), anew)

    def follow(self, sites: Sites, links: Sequence[Link]) -> Any:
        """Return moments at the end of a chain, from the last of it that is known."""
        of = self._of(sites)

        def compute() -> Any:
            known = [self.cache.known(of, link.key) for link in links]
            start = max((n for n, x in enumerate(known) if x is not None), default=0)
            found = known[start] or self._anew(sites, links[0].state)
            for one, other in itertools.pairwise(links[start:]):
                found = self._mended(found, sites, one.state, other)
            return found

        return self.cache.recall(of, links[-1].key, compute)

    def _of(self, sites: Sites) -> Any:
        return self.label, sites, self.within

    def _read(self, sites: Sites, state: State) -> Iterator[list[Centered]]:
        for site in sites:
            yield unit_slices(self.spec, self.models, state, self.label, site)

    def _anew(self, sites: Sites, state: State) -> Any:
        over, _ = _comparison(self.within)
        parts = self._read(sites, state)
        return over(len(self.models), parts, large=self.large)

    def _mended(self, found: Any, sites: Sites, before: State, link: Link) -> Any:
        moved = link.moved
        assert moved is not None

        def entries(state: State, merged: np.ndarray) -> list[np.ndarray]:
            only, own = (moved.label, merged), (self.spec, self.models, state)
            parts = [unit_entries(*own, self.label, site, only) for site in sites]
            return [np.concatenate(each) for each in zip(*parts, strict=True)]

        return mended(found, entries(before, moved.old), entries(link.state, moved.new))


def _bytes_of(state: State) -> tuple[bytes, ...]:
    return tuple(rows.tobytes() for rows in state.values())


def _comparison(within: bool) -> tuple[Callable[..., Any], Callable[..., np.ndarray]]:
    """Return how moments are computed, and turned into similarities."""
    if not within:
        return cross_moments_over, cross_similarity
    return moments_over, activation_similarity
