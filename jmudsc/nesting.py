"""Nesting: per unit of which labels each label may be permuted anew.

Label b is nested in label a exactly if in every value in which b occurs it goes with
one occurrence of a, and no operation brings units of b together that go with different
units of a. The channels of a head, of a GroupNorm group, of an expert or of a scanned
layer are found in this way, with no module named. A parent may be fixed itself: a stack
of layers, the positions of a locally connected layer.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from jmudsc.rules import product_axes
from jmudsc.terms import Terms
from jmudsc.values import Pick
from jmudsc.walk import Contraction, Found, Step, Walk

Names = Mapping[int, str]
Inside = dict[int, set[int]]  # label -> what it may be nested in
Block = tuple[tuple[int, ...], ...]  # per axis its leaves


def parents_of(seen: Walk, names: Names, fixed: Names) -> dict[str, tuple[str, ...]]:
    """Find the parents of every label.

    Args:
        seen: the walk.
        names: atom -> label.
        fixed: fixed atom that labels may be nested in -> its name.

    Returns:
        Label -> the names of its parents, outermost first.
    """
    known = {**fixed, **names}
    inside = _always_together(seen, known)
    for contraction in seen.contractions:
        _part_freed(seen.terms, contraction, inside)
        _part_summed(seen.terms, contraction, inside)
    for step in seen.steps:
        _part_mixed(seen.terms, step, inside)
    rank = {atom: number for number, atom in enumerate(known)}
    for atom in known:  # two labels that always occur together: the outer one leads
        for other in list(inside.get(atom, ())):
            if rank[other] < rank[atom]:
                inside[other].discard(atom)
    depth = {atom: len(around) for atom, around in inside.items()}
    return {
        name: tuple(known[a] for a in sorted(inside[atom], key=depth.__getitem__))
        for atom, name in names.items()
    }


def _always_together(seen: Walk, known: Names) -> Inside:
    """Find for every atom those that it goes with, one occurrence each, everywhere.

    An occurrence on the same axis is the one it goes with, wherever else there are
    others: the groups and the channels in them on both sides of a square kernel.
    """
    inside: Inside = {}
    for found, block in _blocks_of_all(seen):
        everywhere = Counter(itertools.chain(*block))
        for axis, leaves in enumerate(block):
            beside = Counter(leaves)
            picked = Counter(
                term for term, *_ in _rooted(seen.terms, found.picks_on(axis))
            )
            for atom in beside.keys() & known.keys():
                once = {
                    other
                    for other in (everywhere | picked).keys() & known.keys()
                    if everywhere[other] + picked[other] == 1
                    or (beside[other] == beside[atom] == 1 and not picked[other])
                }
                inside[atom] = inside.get(atom, once) & once - {atom}
    return inside


def _part_freed(terms: Terms, contraction: Contraction, inside: Inside) -> None:
    """A sum over units of b at one unit of a may not go over other units of a."""
    loose = _unshared(terms, contraction)
    for operand, summed, free in _free_of(terms, contraction):
        for axis in summed:
            leaves = Counter(terms.leaves(operand.value.axes[axis]))
            for atom in leaves.keys() & inside.keys():
                beside = {a for a, n in leaves.items() if n == leaves[atom] == 1}
                inside[atom] -= (free - beside) | loose


def _unshared(terms: Terms, contraction: Contraction) -> set[int]:
    """Return the atoms of which both operands do not have the same unit picked."""
    return {
        term
        for left, right in contraction.picks
        for term, *_ in _rooted(terms, left) ^ _rooted(terms, right)
    }


def _rooted(
    terms: Terms, picks: Iterable[Pick]
) -> set[tuple[int, int, tuple[int | None, ...]]]:
    """Return what is picked, by which index, along which axes."""
    return {(terms.root(pick.term), pick.index, pick.axes) for pick in picks}


def _free_of(
    terms: Terms, contraction: Contraction
) -> Iterator[tuple[Found, tuple[int, ...], set[int]]]:
    """Yield each operand, its summed axes, and the atoms on axes of one operand."""
    eqn, (lhs, rhs) = contraction.eqn, contraction.operands
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        left, right = ({*terms.leaves(a)} for (a,) in contraction.summed)
        out = {*terms.leaves(rhs.value.axes[numbers.rhs_spec[0]])}
        yield rhs, (numbers.rhs_spec[1],), out - (left - right)
        return
    contracted, batch = product_axes(eqn)
    if eqn.primitive.name == "ragged_dot_general":
        batch = ((), (0,))  # every row meets one kernel
    free = {
        leaf
        for found, c, b in zip((lhs, rhs), contracted, batch, strict=True)
        for number, axis in enumerate(found.value.axes)
        if number not in (*c, *b)
        for leaf in terms.leaves(axis)
    }
    for found, summed in zip((lhs, rhs), contracted, strict=True):
        yield found, tuple(summed), free


def _part_summed(terms: Terms, contraction: Contraction, inside: Inside) -> None:
    """A sum over a may not leave units of b that go with it."""
    for found, summed in zip(contraction.operands, contraction.summed, strict=True):
        gone = {leaf for axis in summed for leaf in terms.leaves(axis)}
        for axis in found.value.axes:
            if axis not in summed:
                leaves = set(terms.leaves(axis))
                for atom in leaves & inside.keys():
                    inside[atom] -= gone - leaves


def _part_mixed(terms: Terms, step: Step, inside: Inside) -> None:
    """Where a is treated by position (windows, sums along it) b may not depend on it.

    The axis that comes out is then another one than went in, even if it is tied to it
    elsewhere.
    """
    for axes in step.ins:
        leaves = [set(terms.leaves(axis)) for axis in axes]
        here = set().union(*leaves)
        for atom in here & inside.keys():
            for other in here & inside[atom]:
                outer = [
                    axis
                    for axis, on in zip(axes, leaves, strict=True)
                    if other in on and atom not in on
                ]
                if outer and not _is_carried(terms, outer, step, atom, other):
                    inside[atom].discard(other)


def _is_carried(
    terms: Terms, axes: list[int], step: Step, atom: int, parent: int
) -> bool:
    for value in step.outs:
        for number, axis in enumerate(value.axes):
            if atom in terms.leaves(axis):
                picked = {terms.root(pick.term) for pick in value.picks_on(number)}
                carried = any(terms.is_made_of(a, axes) for a in value.axes)
                if parent not in picked and not carried:
                    return False
    return True


def _blocks_of_all(seen: Walk) -> Iterator[tuple[Found, Block]]:
    """Yield the leaves, axis by axis, of every block of every value, each once."""
    terms, done = seen.terms, set()
    for found in seen.found:
        axes = tuple(terms.root(a) for a in (*found.around, *found.value.axes))
        kind = axes, found.value.picks and found.around, found.value.picks
        if kind not in done:
            done.add(kind)
            for view in _views(terms, axes):
                for block in itertools.product(*map(terms.blocks, view)):
                    yield found, block


def _views(terms: Terms, axes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the axes as they are at every position that families tell apart."""
    families = [family for axis in axes for family in terms.families(axis)]
    if not families:
        yield axes
        return
    split = terms.split(families[0])
    for position in range(terms.size(split)):
        yield from _views(
            terms, tuple(terms.view(axis, split, position) for axis in axes)
        )
