"""Brute-force oracles: one position at a time what the library does with gathers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jmudsc.derivation.interpreter import _merge_stray_members, Occurrence, Value, Walk
from jmudsc.derivation.terms.axis_terms import Terms
from jmudsc.spec.axes import Concat, Family, Fixed, Product, Units


def permuted(
    array: np.ndarray,
    axes: Sequence[Any],
    perms: Mapping[str, np.ndarray],
    parents: Mapping[str, Sequence[str]] | None = None,
) -> np.ndarray:
    """Permute the units of an array, `new[unit] = old[perm[unit]]`, by definition.

    The row of a nested label is that of the parents' old units; a parent on the same
    axis is the one it goes with.
    """
    parents = parents or {}
    new = np.empty_like(array)
    for place in np.ndindex(array.shape):
        splits = _splits(axes, place)
        read = [_read(a, i, splits) for a, i in zip(axes, place, strict=True)]
        units = [pair for pairs in read for pair in pairs]
        names = [name for name, _ in units]
        origin = [axis for axis, pairs in enumerate(read) for _ in pairs]
        old: list[Any] = [None] * len(units)
        depth = [len(parents.get(name, ())) for name in names]
        for number in sorted(range(len(units)), key=depth.__getitem__):
            label, unit = units[number]
            if perms.get(label) is None:
                old[number] = unit
            else:
                outer = [
                    old[_parent(p, number, names, origin)]
                    for p in parents.get(label, ())
                ]
                old[number] = perms[label][(*outer, unit)]
        rest = iter(old)
        pairs = zip(axes, place, strict=True)
        new[place] = array[tuple(_write(a, i, splits, rest) for a, i in pairs)]
    return new


def _parent(name: str, unit: int, names: Sequence[str], origin: Sequence[int]) -> int:
    found = [other for other, known in enumerate(names) if known == name]
    beside = [other for other in found if origin[other] == origin[unit]]
    return (beside or found)[0]


def positions(axis: Any, perms: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the old position of every new one, on an axis without nested labels."""
    return permuted(np.arange(axis.size), [axis], perms)


def expressed(terms: Terms, axes: Sequence[int]) -> list[Any]:
    """Return what some terms of one array are; free leaves are labels."""
    return [_express(terms, axis) for axis in axes]


def settle(terms: Terms, arrays: Sequence[Sequence[int]]) -> None:
    """Finish the ties between the axes of arrays, as the end of a walk does."""
    found = [Occurrence(Value(list(axes)), None, ()) for axes in arrays]
    _merge_stray_members(Walk(terms, {}, found))


def label(terms: Terms, leaf: int) -> str:
    return str(terms.root(leaf))


def _express(terms: Terms, term: int) -> Any:
    root, size = terms.root(term), terms.size(term)
    match terms.form(root):
        case "product":
            return Product(tuple(_express(terms, f) for f in terms.factors(root)))
        case "concat":
            return Concat(tuple(_express(terms, p) for p in terms.parts(root)))
        case "family":
            members = tuple(_express(terms, m) for m in terms.members(root))
            alike = all(member == members[0] for member in members)
            return members[0] if alike else Family(terms.split(root), members)
    if size <= 1 or terms.reason(root) is not None:
        return Fixed(size, root)
    return Units(label(terms, root), size)


def _splits(axes: Sequence[Any], place: Sequence[int]) -> dict[int, int]:
    """Return the position on every axis that families may run over."""
    splits: dict[int, int] = {}
    before = -1
    while len(splits) > before:
        before = len(splits)
        for axis, position in zip(axes, place, strict=True):
            _note(axis, position, splits)
    return splits


def _note(axis: Any, position: int, splits: dict[int, int]) -> None:
    match axis:
        case Fixed(_, split) if split is not None:
            splits.setdefault(split, position)
        case Product(factors):
            digits = np.unravel_index(position, [factor.size for factor in factors])
            for factor, digit in zip(factors, digits, strict=True):
                _note(factor, digit, splits)
        case Concat(parts):
            part, start = _part(parts, position)
            _note(part, position - start, splits)
        case Family(split, members) if split in splits:
            _note(members[splits[split]], position, splits)


def _read(axis: Any, position: int, splits: Mapping[int, int]) -> list[tuple]:
    """Take a position apart into the units of the atoms that it lies on."""
    match axis:
        case Fixed():
            return [(None, position)]
        case Units(name):
            return [(name, position)]
        case Product(factors):
            digits = np.unravel_index(position, [factor.size for factor in factors])
            pairs = [*zip(factors, digits, strict=True)]
            own = _beside(pairs, splits)
            return [unit for f, digit in pairs for unit in _read(f, digit, own)]
        case Concat(parts):
            part, start = _part(parts, position)
            return _read(part, position - start, splits)
        case Family(split, members):
            return _read(members[splits[split]], position, splits)
    raise TypeError(axis)


def _write(axis: Any, position: int, splits: Mapping[int, int], units: Any) -> int:
    """Put the position together again with other units on the same atoms."""
    match axis:
        case Fixed() | Units():
            return next(units)
        case Product(factors):
            sizes = [factor.size for factor in factors]
            pairs = [*zip(factors, np.unravel_index(position, sizes), strict=True)]
            own = _beside(pairs, splits)
            new = [_write(factor, digit, own, units) for factor, digit in pairs]
            return int(np.ravel_multi_index(new, sizes))
        case Concat(parts):
            part, start = _part(parts, position)
            return start + _write(part, position - start, splits, units)
        case Family(split, members):
            return _write(members[splits[split]], position, splits, units)
    raise TypeError(axis)


def _beside(pairs: Sequence[Any], splits: Mapping[int, int]) -> Mapping[int, int]:
    """Families run over the axis in the same product where it is there twice."""
    own = {f.split: int(digit) for f, digit in pairs if isinstance(f, Fixed)}
    return {**splits, **own}


def _part(parts: Sequence[Any], position: int) -> tuple[Any, int]:
    start = 0
    for part in parts:
        if position < start + part.size:
            return part, start
        start += part.size
    raise IndexError(position)
