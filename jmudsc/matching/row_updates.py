"""Row updates: moments of weights, mended where few rows of their leaves have moved.

Under another assignment of one label, most merged units of that label have the members
that they had, and so have the rows of a leaf that belong to them. The moments of the
units on the leaf's other axis are sums over rows: those that went are taken off, those
that came are added, at a cost that is proportional to their number.

Every update rounds. So a chain of updates ends when as many rows have moved since the
sums were last taken anew as there are: then they are taken anew. What moments are is
decided by their chain alone, and not by what is remembered: whoever forgot them goes
through the chain again, to the same bits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain as chained
from typing import TypeVar

import numpy as np

from jmudsc.digests import digest_of
from jmudsc.matching.cross_moments import CrossMoments
from jmudsc.matching.moments import Moments
from jmudsc.matching.products import add_pairs, add_stacked, mirror
from jmudsc.spec.axes import labels_by_axis
from jmudsc.spec.permutation_spec import PermutationSpec, Site

# Rows that moved are worth an update if they are no more than this share of all.
_FEW = 1 / 4

Mended = TypeVar("Mended", Moments, CrossMoments)
# Other label of a leaf -> where the units of every model go.
State = Mapping[str, np.ndarray]
# Sites of a label that depend on the same other labels.
Sites = tuple[Site, ...]


@dataclass(frozen=True)
class Moved:
    """The merged units of one label whose members are others than before.

    Attributes:
        label: the label.
        old: merged units that are no more, by their number before.
        new: merged units that were not there, by their number now; as many.
    """

    label: str
    old: np.ndarray
    new: np.ndarray


@dataclass(frozen=True)
class Link:
    """One state of the labels on a leaf, and how it came from that before.

    Attributes:
        state: where the units of the labels go.
        key: digest of this state and all before it in the chain.
        moved: what is different from the state before; None where sums are taken anew.
        rows: how many rows have moved since then.
    """

    state: State
    key: str
    moved: Moved | None = None
    rows: int = 0


@dataclass
class Chains:
    """The chain of every label at every leaf, through one search.

    Attributes:
        links: label and sites -> the links, the first one taken anew.
    """

    links: dict[tuple[str, Sites], tuple[Link, ...]] = field(default_factory=dict)

    def advance(
        self, spec: PermutationSpec, label: str, sites: Sites, state: State
    ) -> tuple[Link, ...]:
        """Go on to a state; one that is in the chain ends it.

        Args:
            spec: the permutation spec.
            label: whose moments they are.
            sites: on which leaves and axes.
            state: of the other labels on these leaves.

        Returns:
            The chain that ends in the state.
        """
        links = self.links.get((label, sites), ())
        known = [n for n, link in enumerate(links) if _same(link.state, state)]
        if known:
            links = links[: known[0] + 1]
        elif links and (
            moved := what_moved(spec, label, sites, links[-1].state, state)
        ):
            rows, all_rows = (
                links[-1].rows + len(moved.new),
                state[moved.label].shape[1],
            )
            few = len(moved.new) <= _FEW * all_rows and rows <= all_rows
            key = _key(state, links[-1].key)
            link = Link(state, key, moved, rows)
            links = (*links, link) if few else (Link(state, _key(state)),)
        else:
            links = (Link(state, _key(state)),)
        self.links[label, sites] = links
        return links


def what_moved(
    spec: PermutationSpec, label: str, sites: Sites, before: State, after: State
) -> Moved | None:
    """Return what is different between two states, if rows of the leaves tell it.

    Args:
        spec: the permutation spec.
        label: the label that is read.
        sites: on which leaves and axes.
        before: one state of the other labels on these leaves.
        after: another.

    Returns:
        None if several labels moved, or one that is nested, has others nested in it,
        or is on several axes.
    """
    names = [n for n in after if not np.array_equal(before[n], after[n])]
    if len(names) != 1:
        return None
    (name,) = names
    nested = any(name in spec.labels[n].parents for n in (label, *after))
    counts = [
        Counter(chained.from_iterable(axes))[name]
        for site in sites
        for axes in labels_by_axis(spec.axes[site.path])
    ]
    if name == label or spec.labels[name].parents or nested or max(counts) > 1:
        return None
    old, new = _members(before[name]), _members(after[name])
    went = [number for members, number in old.items() if members not in new]
    came = [number for members, number in new.items() if members not in old]
    if len(went) != len(came):
        return None
    return Moved(name, np.array(went, int), np.array(came, int))


def mended(
    moments: Mended, old: Sequence[np.ndarray], new: Sequence[np.ndarray]
) -> Mended:
    """Take rows off moments, and add as many others.

    Args:
        moments: on the host.
        old: per model the entries of the rows that went, (entries, *apart, units).
        new: of those that came.

    Returns:
        The moments of what is there now, to rounding.
    """
    if isinstance(moments, Moments):
        means = np.split(moments.mean, len(old), axis=-1)
    else:
        means = list(moments.mean)
    old = [x - mean for x, mean in zip(old, means, strict=True)]
    new = [x - mean for x, mean in zip(new, means, strict=True)]
    pairs = zip(new, old, strict=True)
    step = [(x.sum(axis=0) - y.sum(axis=0)) / moments.count for x, y in pairs]
    step = [x.astype(np.float32)[None] for x in step]
    changes = (new, 1.0), (old, -1.0), (step, -float(moments.count))
    if isinstance(moments, Moments):
        total = np.array(moments.comoment)
        for samples, times in changes:
            total = add_stacked(total, samples, times=times)
        mean = moments.mean + np.concatenate(step, axis=-1)[0]
        return replace(moments, mean=mean, comoment=mirror(total))
    square, total = moments.square.copy(), np.array(moments.product)
    for samples, times in changes:
        total = add_pairs(total, samples, times=times)
        square += np.float32(times) * np.stack([(x * x).sum(axis=0) for x in samples])
    mean = moments.mean + np.concatenate(step)
    return replace(moments, mean=mean, square=np.maximum(square, 0), product=total)


def _members(rows: np.ndarray) -> dict[bytes, int]:
    """Return the units of all models that go to each merged unit, and its number."""
    stacked = rows.reshape(-1)
    order = stacked.argsort(kind="stable").astype(np.int32)
    numbers, starts = np.unique(stacked[order], return_index=True)
    ends = [*starts[1:].tolist(), len(order)]
    members, size = order.tobytes(), order.itemsize  # slices of bytes are cheap
    parts = zip(numbers.tolist(), starts.tolist(), ends, strict=True)
    return {members[size * i : size * j]: number for number, i, j in parts}


def _same(one: State, other: State) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in other)


def _key(state: State, before: str = "") -> str:
    return digest_of([before.encode(), *(rows.tobytes() for rows in state.values())])
