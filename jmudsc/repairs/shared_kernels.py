"""Shared kernels: which uses of kernels are of one and the same."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jmudsc.derivation.program import variables_of
from jmudsc.repairs.contractions import matrix
from jmudsc.repairs.layers import Layer, Linear, Norm, Shared, uses_of
from jmudsc.repairs.leaf_entries import Origins
from jmudsc.repairs.operands import is_whole, source_of

_MORE = "is used more than once"


def layers_of(
    found: Sequence[Linear | Norm], origins: Origins, skipped: dict[str, str]
) -> tuple[Layer, ...]:
    """Put the uses of every kernel together.

    Args:
        found: linear layers and norms, in program order.
        origins: of the program.
        skipped: path of a kernel -> why it cannot be written; added to.

    Returns:
        The layers, by where they come first.
    """
    layers: list[Layer] = [step for step in found if isinstance(step, Norm)]
    for uses in _by_entries([step for step in found if isinstance(step, Linear)]):
        layer = _layer(uses, origins)
        if isinstance(layer, str):
            skipped |= dict.fromkeys(
                (p for use in uses for p in use.kernel.paths), layer
            )
        else:
            layers.append(layer)
    number = {id(step): n for n, step in enumerate(found)}
    place = {id(use.eqn): number[id(use)] for use in found}
    return tuple(sorted(layers, key=lambda layer: place[id(uses_of(layer)[0].eqn)]))


def _by_entries(found: Iterable[Linear]) -> Iterator[list[Linear]]:
    """Yield the uses of the same entries of a leaf, those that overlap in part too."""
    groups: dict[Any, list[list[Linear]]] = {}
    for use in found:
        of_leaf = groups.setdefault(source_of(use.kernel), [])
        meets = [g for g in of_leaf if any(_overlap(use, other) for other in g)]
        for group in meets:
            of_leaf.remove(group)
        of_leaf.append([*(other for group in meets for other in group), use])
    for of_leaf in groups.values():
        yield from of_leaf


def _overlap(a: Linear, b: Linear) -> bool:
    one, other = a.kernel.index, b.kernel.index
    if one is other:
        return True
    if one.size == 0 or one.min() > other.max() or one.max() < other.min():
        return False
    return bool(np.isin(one, other, kind="table").any())


def _layer(uses: Sequence[Linear], origins: Origins) -> Linear | Shared | str:
    """Make a layer of the uses of a kernel, or say why it cannot be one."""
    first = uses[0]
    if not is_whole(first.kernel, len(uses), origins):
        return _MORE
    is_turned = [_is_turned(first, use) for use in uses]
    if any(flag is None for flag in is_turned):
        return f"{_MORE}, and not as the same matrix"
    uses = [
        replace(use, is_turned=flag is True)
        for use, flag in zip(uses, is_turned, strict=True)
    ]
    uses = _with_own_biases(uses, origins)
    return uses[0] if len(uses) == 1 else Shared(tuple(_led(uses, origins)))


def _is_turned(first: Linear, use: Linear) -> bool | None:
    """Whether a use is of the transpose of the first matrix; None if of another one."""
    if use.form == first.form and use.kernel.index is first.kernel.index:
        return False
    one, other = (matrix(each.form, each.kernel.index) for each in (first, use))
    if one.shape == other.shape and (one == other).all():
        return False
    turned = np.swapaxes(other, 1, 2)
    is_same = len(one) == 1 and one.shape == turned.shape
    return True if is_same and (one == turned).all() else None


def _with_own_biases(uses: Sequence[Linear], origins: Origins) -> list[Linear]:
    """Leave to uses the biases that nothing but uses of the same matrix adds."""
    sets = [bias_set(use) for use in uses]
    return [
        use
        if use.bias is None or is_whole(use.bias, sets.count(own), origins)
        else replace(use, bias=None, is_normed=False)
        for use, own in zip(uses, sets, strict=True)
    ]


def bias_set(use: Linear) -> Hashable:
    """Return what uses of a kernel that add the same bias have equal.

    Args:
        use: of the kernel.

    Returns:
        A key; None for a use that adds none.
    """
    if use.bias is None:
        return None
    return use.bias.paths, use.bias.index.tobytes(), use.is_turned


def _led(uses: Sequence[Linear], origins: Origins) -> Iterator[Linear]:
    """Mark the uses that are on what a use before them made."""
    of_eqn = {id(use.eqn): use for use in uses}
    made: set[Any] = set()
    for eqn in origins.program.eqns:
        use = of_eqn.get(id(eqn))
        if use is not None:
            yield replace(use, is_led=use.operand in made and bool(use.takes))
        if use is not None or not made.isdisjoint(variables_of(eqn.invars)):
            made.update(eqn.outvars)
