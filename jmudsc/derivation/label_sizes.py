"""Label sizes: how many units labels have, as the shapes of the leaves tell.

A spec written by hand names labels without saying their sizes. Every axis of a leaf is
an equation: what is on it makes its length.
"""

import bisect
from collections.abc import Mapping

from jmudsc.paths import listed
from jmudsc.spec.axes import (
    Atom,
    atoms_in,
    Axis,
    families_in,
    Fixed,
    map_atoms,
    Units,
    views,
)
from jmudsc.spec.notation import LeafAxes, Shapes
from jmudsc.spec.permutation_spec import Site


def with_sizes(
    where: str,
    axes: LeafAxes,
    shapes: Shapes,
    given: Mapping[str, int],
    otherwise: Mapping[str, int] | None = None,
) -> LeafAxes:
    """Give every label its size, as the lengths of the axes that it is on tell.

    Args:
        where: the caller, named in the error.
        axes: leaf path -> one expression per axis.
        shapes: leaf path -> shape.
        given: label -> units, where known.
        otherwise: label -> units, taken where the shapes do not tell.

    Returns:
        The axes, no label of size 0.

    Raises:
        ValueError: listing the axes that have not the length that they must have by
            what is on them, or those on which labels could have several sizes.
    """
    _check_families(where, axes)
    ends = {
        (Site(path, number), view): length
        for path, row in axes.items()
        for number, (axis, length) in enumerate(zip(row, shapes[path], strict=True))
        for (view,) in views([axis])
    }
    written = {
        atom.label: atom.size
        for _, axis in ends
        for atom in atoms_in(axis)
        if isinstance(atom, Units) and atom.size
    }
    sizes, told_by = _solved(ends, {**written, **given})
    sizes, more = _solved(ends, {**(otherwise or {}), **sizes})
    _check_lengths(where, ends, sizes, told_by | more)
    return {
        path: tuple(_sized(axis, sizes) for axis in row) for path, row in axes.items()
    }


def _solved(
    ends: Mapping[tuple[Site, Axis], int], known: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, Site]]:
    """Find the sizes of labels, one after the other, and the axis that told each.

    An axis tells the size of a label once those of all others on it are known; axes
    with nothing else on them come first, since they leave no doubt.
    """
    sizes, told_by = dict(known), {}
    plain_first = sorted(ends, key=lambda end: not isinstance(end[1], Units))
    while True:
        before = len(sizes)
        for site, axis in plain_first:
            unknown = set(axis.labels()) - sizes.keys()
            if len(unknown) == 1:
                (label,) = unknown
                size = _fitting(axis, sizes, label, ends[site, axis])
                if size:
                    sizes[label], told_by[label] = size, site
        if len(sizes) == before:
            return sizes, told_by


def _fitting(
    axis: Axis, sizes: Mapping[str, int], label: str, length: int
) -> int | None:
    """Return the size of a label with which an axis has its length, if there is one."""

    def made(size: int) -> int:
        return _sized(axis, {**sizes, label: size}).size

    size = 1 + bisect.bisect_left(range(1, length + 1), length, key=made)
    return size if made(size) == length else None


def _sized(axis: Axis, sizes: Mapping[str, int]) -> Axis:
    def sized(atom: Atom) -> Atom:
        return Units(atom.label, sizes[atom.label]) if isinstance(atom, Units) else atom

    return map_atoms(axis, sized)


def _check_lengths(
    where: str,
    ends: Mapping[tuple[Site, Axis], int],
    sizes: Mapping[str, int],
    told_by: Mapping[str, Site],
) -> None:
    wrong, unclear = [], []
    for ((path, number), axis), length in ends.items():
        what = f"{path}:{number} has length {length}"
        unknown = set(axis.labels()) - sizes.keys()
        if isinstance(axis, Fixed):
            if axis.size != length:
                wrong.append(f"{what}, the row says {axis}")
        elif len(unknown) > 1:
            unclear.append(f"{what} and is {axis}")
        elif unknown:
            wrong.append(f"{what}, which {axis} cannot have")
        elif (size := _sized(axis, sizes).size) != length:
            names = [name for name in dict.fromkeys(axis.labels()) if name in told_by]
            by = [
                f"; {n} has {sizes[n]} by {told_by[n].path}:{told_by[n].axis}"
                for n in names
            ]
            wrong.append(f"{what}, but {axis} has {size}{''.join(by)}")
    if wrong:
        raise ValueError(
            f"{where}: expected axes as long as what the rows put on them, got:\n"
            f"{listed(wrong)}\nCorrect these rows, or those that they disagree with."
        )
    if unclear:
        raise ValueError(
            f"{where}: expected shapes that tell the units of every label, got:\n"
            f'{listed(unclear)}\nPass sizes={{"label": units}} for some of them.'
        )


def _check_families(where: str, axes: LeafAxes) -> None:
    problems = []
    for path, row in axes.items():
        marks = {
            atom.split: atom.size
            for axis in row
            for atom in atoms_in(axis)
            if isinstance(atom, Fixed)
        }
        for family in (family for axis in row for family in families_in(axis)):
            if marks.get(family.split) != (count := len(family.members)):
                problems.append(
                    f"{path} has {family}, but no axis {count}#{family.split}"
                )
    if problems:
        raise ValueError(
            f"{where}: expected a fixed axis for every pair of braces to run over, "
            f"got:\n{listed(problems)}\nMark the fixed axis with as many positions as "
            "there are axes in the braces."
        )
