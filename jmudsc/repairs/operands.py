"""Operands: kernels and biases, be they a leaf or computed from leaves."""

from collections.abc import Hashable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jmudsc.repairs.leaf_entries import Entries, is_used, Origins, read, write
from jmudsc.repairs.made_kernels import Made, made_value, with_value
from jmudsc.sharding import from_host, sharding_of, to_host

Operand = Entries | Made

# So many times the last bit of the largest entry is rounding.
_ROUNDING = 64


def source_of(operand: Operand) -> Hashable:
    """Return what `operand.index` is about: the path of a leaf, or a variable."""
    return operand.source if isinstance(operand, Made) else operand.path


def is_whole(operand: Operand, times: int, origins: Origins) -> bool:
    """Return whether its entries go into so many equations, and each is there once.

    Args:
        operand: a kernel or bias.
        times: how many equations.
        origins: of the program.
    """
    if isinstance(operand, Made):
        return operand.times == times
    return is_used(origins, operand, times)


def value_of(operand: Operand, leaves: Mapping[str, Any]) -> ArrayLike:
    """Compute an operand in float32, where its leaf is; on the host if that is spread.

    Args:
        operand: a kernel or bias.
        leaves: path -> array.
    """
    leaf = leaves[operand.path]
    if isinstance(operand, Made):
        values = made_value(operand, leaves).ravel()[operand.index].astype(np.float32)
    else:
        values = read(leaf, operand.index)
    return values if sharding_of(leaf) else from_host(values, leaf)


def with_change(
    operand: Operand, leaves: Mapping[str, Any], index: np.ndarray, change: np.ndarray
) -> tuple[dict[str, Any], np.ndarray, bool]:
    """Add something to an operand.

    Args:
        operand: a kernel or bias.
        leaves: path -> array.
        index: `operand.index`, laid out in any way.
        change: what to add, laid out in the same way.

    Returns:
        The new leaves; what came to be added; and whether that is what was to be, but
        for rounding: an operand that is computed may not be able to follow.
    """
    if isinstance(operand, Entries):
        leaf = leaves[operand.path]
        before = to_host(leaf).ravel()[index].astype(float)
        return {operand.path: write(leaf, index, before + change)}, change, True
    before = made_value(operand, leaves)
    wanted = before.copy()
    wanted.reshape(-1)[index] += change
    new, after = with_value(operand, leaves, wanted)
    step = max(float(jnp.finfo(new[path].dtype).eps) for path in new)
    missed = np.abs(after - wanted).max(initial=0)
    is_exact = bool(missed <= _ROUNDING * step * np.abs(wanted).max(initial=0))
    return new, (after - before).ravel()[index], is_exact
