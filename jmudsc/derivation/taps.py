"""Taps: where in a program the activations of each label are read, and how."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax

from jmudsc.derivation.axis_expressions import express_all, terms_of
from jmudsc.derivation.interpreter import Occurrence, Walk, walk
from jmudsc.derivation.program import Program
from jmudsc.derivation.rules.ordering import IN_ORDER
from jmudsc.derivation.terms.axis_terms import Term, Terms
from jmudsc.derivation.terms.values import Pick, Place
from jmudsc.spec.axes import Axis, Fixed, labels_by_block, Units
from jmudsc.spec.permutation_spec import PermutationSpec


@dataclass(frozen=True)
class Choice:
    """An axis of a value is in the order of a unit that an index picks.

    Attributes:
        size: number of units of the label that is picked from.
        place: where the index value is.
        axes: for each axis of the index value, those of the loops around it first, the
            axis of the value along which it varies; None where it has one position.
    """

    size: int
    place: Place
    axes: tuple[int | None, ...]


@dataclass(frozen=True)
class Tap:
    """A value of a program at which a label's activations are read.

    Attributes:
        place: where the value is.
        axes: one axis expression per axis of what is read: those of the loops around
            the value, its own without `summed`, and one for each of `choices`.
        choices: for each outer label that is not on the value the index that
            picks its unit.
        summed: axes of the value along which different units are picked, in no order
            that models share: what was not picked is 0, and the rest is summed.
    """

    place: Place
    axes: tuple[Axis, ...]
    choices: tuple[Choice, ...] = ()
    summed: tuple[int, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the values are that are needed to read it."""
        return (self.place, *(choice.place for choice in self.choices))


def find_taps(program: Program, spec: PermutationSpec) -> dict[str, tuple[Tap, ...]]:
    """Find where the activations of each label are read.

    A label is read at the operands of the last contraction that sums over it: the
    post-activation input of the next layer, the pooled features of a residual stream,
    both queries and keys. A label that is never summed over is read at the last value
    that has it. A value on which there is another label, none of its outer ones, is the
    second choice: the order of that label's units differs between models, so it has to
    be averaged over (the channels, for the hidden tokens of a mixer).

    Args:
        program: the traced model.
        spec: its spec, derived or written by hand.

    Returns:
        The taps of each label; an empty tuple for a label without activations.
    """
    seen, names = _walk_by(program, spec)

    def read(found: Occurrence, axes: Iterable[Term]) -> dict[str, Tap]:
        """Read each of the labels on some axes of a value."""
        if not found.value.is_data or found.place is None:
            return {}
        taps = {
            n: _tap(spec, seen, names, found, n) for n in _names_in(seen, names, axes)
        }
        return {name: tap for name, tap in taps.items() if tap is not None}

    last: dict[str, list[Tap]] = {}
    for where in _in_order(seen):
        best: dict[str, list[Tap]] = {}
        for found, axes in where:
            for name, tap in read(found, axes).items():
                best.setdefault(name, []).append(tap)
        for name, taps in best.items():
            is_clear = any(_is_clear(spec, name, tap) for tap in taps)
            if is_clear or not any(
                _is_clear(spec, name, t) for t in last.get(name, ())
            ):
                last[name] = taps
    return {name: tuple(dict.fromkeys(last.get(name, ()))) for name in spec.labels}


def _in_order(seen: Walk) -> Iterator[list[tuple[Occurrence, Sequence[Term]]]]:
    """Yield places to read labels, better ones later, with the axes to read there."""
    for found in seen.values:
        yield [(found, found.value.axes)]
    for contraction in seen.contractions:
        summed = tuple(itertools.chain(*contraction.summed))
        nearest = max(found.value.nearness for found in contraction.operands)
        yield [
            (found, summed)
            for found in contraction.operands
            if found.value.nearness == nearest
        ]


def _is_clear(spec: PermutationSpec, name: str, tap: Tap) -> bool:
    """Whether no other label lies along with a label, save its outer ones."""
    known = {name, *spec.labels[name].parents}
    known |= {label for label, record in spec.labels.items() if record.fixed}
    blocks = [block for block in labels_by_block(list(tap.axes)) if name in block]
    return all(known.issuperset(b) and b.count(name) == 1 for b in blocks)


def value_axes(
    program: Program, spec: PermutationSpec
) -> dict[Place, tuple[Axis, ...]]:
    """Say what every axis of every activation is, outside branches.

    Args:
        program: the traced model.
        spec: its spec, derived or written by hand.

    Returns:
        Per place of a value that depends on the batch one axis expression per axis:
        those of the steps of the loops around it, outermost first, and then its own.
    """
    seen, names = _walk_by(program, spec)
    return {
        found.place: express_all(seen.terms, names, (*found.around, *found.value.axes))
        for found in seen.values
        if found.value.is_data and found.place is not None
    }


def _walk_by(program: Program, spec: PermutationSpec) -> tuple[Walk, dict[Term, str]]:
    """Walk with what a spec says of the leaves; return the names of the labels too."""
    terms = Terms()
    atoms = {name: terms.leaf(label.size) for name, label in spec.labels.items()}
    leaf_axes = {
        path: terms_of(terms, atoms, spec.axes[path]) for path in program.paths
    }
    seen = walk(program, terms, leaf_axes)
    return seen, {terms.root(atom): name for name, atom in atoms.items()}


def read_tap(tap: Tap, value: jax.Array, indices: Sequence[jax.Array]) -> jax.Array:
    """Read the activations at a tap.

    Args:
        tap: the tap.
        value: the value at `tap.place`, the steps of loops around it leading.
        indices: the index value of each of `tap.choices`, with steps leading too.

    Returns:
        An array whose axes are `tap.axes`.
    """
    rank = value.ndim
    for choice, index in zip(tap.choices, indices, strict=True):
        value = value[..., None] * _one_hot(choice, index, rank, value)
    return value.sum(axis=tap.summed) if tap.summed else value


def _one_hot(
    choice: Choice, index: jax.Array, rank: int, value: jax.Array
) -> jax.Array:
    """Say for every position of a value which unit was picked, on a new last axis."""
    index = index[..., 0] if index.ndim > len(choice.axes) else index
    along = [number for number, axis in enumerate(choice.axes) if axis is not None]
    index = index.reshape([index.shape[number] for number in along])
    places = [axis for axis in choice.axes if axis is not None]
    index = index.transpose(sorted(range(len(places)), key=places.__getitem__))
    shape = [n if axis in choice.axes else 1 for axis, n in enumerate(value.shape)]
    hot = jax.nn.one_hot(index, choice.size, dtype=value.dtype)
    return hot.reshape(*shape[:rank], *(1,) * (value.ndim - rank), choice.size)


def _tap(
    spec: PermutationSpec,
    seen: Walk,
    names: Mapping[Term, str],
    found: Occurrence,
    name: str,
) -> Tap | None:
    """Build a tap, if the units of a label can be compared between models there.

    They cannot together with units nested in them, or where it is not known which units
    of its outer labels they go with.
    """
    if found.place is None:
        return None
    axes = express_all(seen.terms, names, (*found.around, *found.value.axes))
    outer = spec.labels[name].parents
    blocks = [block for block in labels_by_block(axes) if name in block]
    nested = {n for n, label in spec.labels.items() if name in label.parents}
    if not blocks or any(nested.intersection(block) for block in blocks):
        return None
    missing = [o for o in outer if any(o not in block for block in blocks)]
    picks = {
        names.get(seen.terms.root(pick.term)): pick
        for number, axis in enumerate(axes)
        if name in axis.labels()
        for pick in found.picks_on(number)
    }
    if not all(_is_readable(picks.get(label), found.place) for label in missing):
        return None
    choices = tuple(
        _choice(picks[label], spec.labels[label].size, len(found.around))
        for label in missing
    )
    summed = {
        axis
        for choice in choices
        for axis in choice.axes
        if axis is not None and _is_slot(seen, found, axes, axis)
    }
    kept = [axis for number, axis in enumerate(axes) if number not in summed]
    units = [Units(label, spec.labels[label].size) for label in missing]
    return Tap(found.place, (*kept, *units), choices, tuple(sorted(summed)))


def _is_readable(pick: Pick | None, place: Place) -> bool:
    """Whether the index of a pick can be read with a value at a place."""
    if pick is None or pick.place is None:
        return False
    loops = pick.place.loops
    return place.loops[: len(loops)] == loops


def _choice(pick: Pick, size: int, loops: int) -> Choice:
    assert pick.place is not None
    own = tuple(None if axis is None else loops + axis for axis in pick.axes)
    return Choice(size, pick.place, (*range(len(pick.place.loops)), *own))


def _is_slot(seen: Walk, found: Occurrence, axes: tuple[Axis, ...], axis: int) -> bool:
    """Whether an axis numbers the picks, or the steps of a loop that picks."""
    if not isinstance(axes[axis], Fixed):
        return False
    own = axis - len(found.around)
    return own < 0 or seen.terms.reason(found.value.axes[own]) == IN_ORDER


def _names_in(seen: Walk, names: Mapping[Term, str], axes: Iterable[Term]) -> list[str]:
    """Return the names of the terms below some axes, not descending below a name."""
    terms, found, todo = seen.terms, {}, list(axes)
    while todo:
        root = terms.root(todo.pop())
        if root in names:
            found[names[root]] = None
        else:
            todo += terms.children(root)
    return list(found)
