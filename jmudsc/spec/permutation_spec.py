"""Permutation spec: which axes of which leaves must be permuted together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from jmudsc.spec.axes import atoms_in, Axis, Fixed


class Site(NamedTuple):
    """One axis of one leaf.

    Attributes:
        path: the leaf's path.
        axis: the axis number.
    """

    path: str
    axis: int


@dataclass(frozen=True)
class Label:
    """A set of axes that must be permuted together.

    Attributes:
        size: number of units.
        parents: its outer labels, outermost first: those it is nested in, per unit of
            which it may be permuted anew; empty for most.
        sites: where the label occurs.
        fixed: why it may not be permuted itself, only what is nested in it: it is a
            stack of layers, or frozen; None for most.
    """

    size: int
    parents: tuple[str, ...]
    sites: tuple[Site, ...]
    fixed: str | None = None


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation symmetries of a model, as labels on the axes of its leaves.

    Build one with `infer_spec`, or `read_spec` from what you write. `print(spec)` shows
    it as tables, which `read_spec` reads back.

    Attributes:
        axes: leaf path -> one axis expression per axis.
        labels: label -> its record, in the order in which the program meets them.
        fixed: site -> why it may not be permuted, for every axis without a label, and
            for those with fixed parts beside the labels ("in part: ...").
        consumed: the sites that a contraction sums over (the incoming axis of a
            kernel); every other labelled site produces its label.
        statistics: paths of BatchNorm running statistics: permuted and merged like any
            leaf, but no evidence of what a unit does.
        variances: path of a running mean -> that of the variance it goes with.
        unread: paths of the leaves that the model does not read.
        alike: path of such a leaf -> that of the leaf that it moves like (see
            `move_alike`); like statistics, no evidence of what a unit does.
    """

    axes: Mapping[str, tuple[Axis, ...]]
    labels: Mapping[str, Label]
    fixed: Mapping[Site, str] = field(default_factory=dict)
    consumed: frozenset[Site] = frozenset()
    statistics: frozenset[str] = frozenset()
    variances: Mapping[str, str] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()
    alike: Mapping[str, str] = field(default_factory=dict)

    def is_evidence(self, path: str) -> bool:
        """Whether a leaf says what the units on its axes do.

        Args:
            path: of the leaf.
        """
        return path not in self.statistics and path not in self.alike

    def children(self, name: str) -> tuple[str, ...]:
        """Return the labels nested directly in a label.

        Args:
            name: a label.

        Returns:
            The labels whose outer labels are those of this label, and then this label.
        """
        outer = (*self.labels[name].parents, name)
        return tuple(n for n, label in self.labels.items() if label.parents == outer)

    def row_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one model's row of an assignment.

        Args:
            name: a label.

        Returns:
            `(*outer units, units)`.
        """
        label = self.labels[name]
        return (*(self.labels[outer].size for outer in label.parents), label.size)

    def compared_shape(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return `row_shape` in two parts: what stays in place, and what is compared.

        Units of a stack of layers, say, keep their positions, so that what is nested in
        one of them is never compared with what is nested in another.

        Args:
            name: a label.

        Returns:
            The sizes of its outermost labels that are fixed; those of its other outer
            labels and its own.
        """
        shape, apart = self.row_shape(name), 0
        for outer in self.labels[name].parents:
            if not self.labels[outer].fixed:
                break
            apart += 1
        return shape[:apart], shape[apart:]

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def fixed_sites(axes: Mapping[str, tuple[Axis, ...]]) -> dict[Site, str]:
    """Find the axes that may not be permuted, wholly or in part.

    Args:
        axes: leaf path -> one axis expression per axis.

    Returns:
        Site -> what to say before the reason: nothing, or `"in part: "` where labels
        are on the axis too.
    """
    found = {}
    for path, expressions in axes.items():
        for number, axis in enumerate(expressions):
            parts = [x for x in atoms_in(axis) if isinstance(x, Fixed) and x.size > 1]
            if not axis.labels():
                found[Site(path, number)] = ""
            elif parts:
                found[Site(path, number)] = "in part: "
    return found


def labels_of(
    axes: Mapping[str, tuple[Axis, ...]],
    sizes: Mapping[str, int],
    outer: Mapping[str, tuple[str, ...]],
    fixed: Mapping[str, str | None] | None = None,
) -> dict[str, Label]:
    """Build the label records from the axis expressions.

    Args:
        axes: leaf path -> one axis expression per axis.
        sizes: label -> units, in the order the labels should have.
        outer: label -> its outer labels, outermost first; a missing label has none.
        fixed: label -> why it may not be permuted itself.

    Returns:
        One record per label that occurs in `axes`.
    """
    sites: dict[str, dict[Site, None]] = {label: {} for label in sizes}
    for path, expressions in axes.items():
        for number, axis in enumerate(expressions):
            for label in axis.labels():
                sites[label][Site(path, number)] = None
    return {
        label: Label(
            sizes[label],
            tuple(outer.get(label, ())),
            tuple(sites[label]),
            (fixed or {}).get(label),
        )
        for label in sizes
        if sites[label]
    }


def _lines(spec: PermutationSpec) -> list[str]:
    labelled = {site.path for label in spec.labels.values() for site in label.sites}
    names = max([8, *map(len, spec.labels)])
    width = max([4, *map(len, spec.axes)])
    noun = "label" if len(spec.labels) == 1 else "labels"
    leaves = "leaf" if len(spec.axes) == 1 else "leaves"
    lines = [
        f"{len(spec.labels)} {noun} on {len(labelled)} of {len(spec.axes)} {leaves}",
        "",
        f"{'label':<{names}}{'units':>6}  per unit of",
    ]
    for name, label in spec.labels.items():
        row = f"{name:<{names}}{label.size:>6}  {' '.join(label.parents)}".rstrip()
        lines.append(row + (f"  (fixed: {label.fixed})" if label.fixed else ""))
    lines += ["", f"{'leaf':<{width}}  axes"]
    for path, axes in spec.axes.items():
        note = "  (running statistic)" if path in spec.statistics else ""
        note = f"  (moves like {spec.alike[path]})" if path in spec.alike else note
        lines.append(f"{path:<{width}}  {', '.join(map(str, axes))}{note}".rstrip())
    if spec.fixed:
        fixed = {f"{path}:{axis}": why for (path, axis), why in spec.fixed.items()}
        width = max([5, *map(len, fixed)])
        lines += ["", f"{'fixed':<{width}}  why"]
        lines += [f"{site:<{width}}  {why}" for site, why in fixed.items()]
    return lines
