"""Nesting: per unit of which labels each label may be permuted anew.

Label b is nested in label a exactly if in every value in which b occurs it goes with
one occurrence of a, and no operation brings units of b together that go with different
units of a. The channels of a head, of a GroupNorm group, of an expert or of a scanned
layer are found in this way, with no module named. An outer label may be fixed itself: a
stack of layers, the positions of a locally connected layer.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from jmudsc.derivation.interpreter import Occurrence, Walk
from jmudsc.derivation.terms.axis_terms import Term, Terms
from jmudsc.derivation.terms.values import Number, Pick

Names = Mapping[Term, str]
Inside = dict[Term, set[Term]]  # label -> what it may be nested in
Block = tuple[tuple[Term, ...], ...]  # per axis its leaves


def outer_labels_of(
    seen: Walk, names: Names, fixed: Names
) -> dict[str, tuple[str, ...]]:
    """Find the outer labels of every label.

    Args:
        seen: the walk.
        names: atom -> label.
        fixed: fixed atom that labels may be nested in -> its name.

    Returns:
        Label -> the names of its outer labels, outermost first.
    """
    known = {**fixed, **names}
    inside = _always_together(seen, known)
    rank = {atom: number for number, atom in enumerate(known)}
    for atom in known:  # two labels that always occur together: the outer one leads
        for other in list(inside.get(atom, ())):
            if rank[other] < rank[atom]:
                inside[other].discard(atom)
    _drop_ambiguous(inside, names)
    depth = {atom: len(around) for atom, around in inside.items()}
    return {
        name: tuple(known[a] for a in sorted(inside[atom], key=depth.__getitem__))
        for atom, name in names.items()
    }


def _drop_ambiguous(inside: Inside, names: Names) -> None:
    """Units of what is nested itself are told apart only along with what is around."""

    def ambiguous() -> list[tuple[Term, Term]]:
        return [
            (atom, outer)
            for atom, around in inside.items()
            for outer in around & names.keys()
            if not inside[outer] <= around
        ]

    while found := ambiguous():
        for atom, outer in found:
            inside[atom].discard(outer)


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
            is_apart = found.is_apart(axis)
            picked = Counter(
                term for term, *_ in _rooted(seen.terms, found.picks_on(axis))
            )
            for atom in beside.keys() & known.keys():
                once = {
                    other
                    for other in (everywhere | picked).keys() & known.keys()
                    if everywhere[other] + picked[other] == 1
                    or (
                        beside[other] == beside[atom] == 1
                        and not picked[other]
                        and not is_apart
                    )
                }
                inside[atom] = inside.get(atom, once) & once - {atom}
    return inside


def _rooted(
    terms: Terms, picks: Iterable[Pick]
) -> set[tuple[Term, Number, tuple[int | None, ...]]]:
    """Return what is picked, by which index, along which axes."""
    return {(terms.root(pick.term), pick.index, pick.axes) for pick in picks}


def _blocks_of_all(seen: Walk) -> Iterator[tuple[Occurrence, Block]]:
    """Yield the leaves, axis by axis, of every block of every value, each once."""
    terms, done = seen.terms, set()
    for found in (*seen.values, *seen.met):
        axes = tuple(terms.root(a) for a in (*found.around, *found.value.axes))
        own = found.value.picks or found.value.apart
        kind = axes, own and found.around, found.value.picks, found.value.apart
        if kind not in done:
            done.add(kind)
            for view in _views(terms, axes):
                for block in itertools.product(*map(terms.blocks, view)):
                    yield found, block


def _views(terms: Terms, axes: tuple[Term, ...]) -> Iterator[tuple[Term, ...]]:
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
