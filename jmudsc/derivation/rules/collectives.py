"""Collectives: primitives that bring the parts of several devices together.

A `shard_map` is evaluated as a `vmap` over the parts of its mesh, under which most of
them become sums and gathers over an axis (see `shard_map`).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from jmudsc.derivation.rules.common import drop, negligible, unknown
from jmudsc.derivation.rules.primitive import AxisTerms, Primitive
from jmudsc.derivation.terms.axis_terms import Terms


def collective(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """A sum, maximum, ... over an axis that `vmap` made of devices: drop it."""
    axes = eqn.params["axes"]
    if eqn.params["axis_index_groups"] is not None or any(
        isinstance(axis, str) for axis in axes
    ):
        return unknown(terms, eqn, ins)
    return [drop(operand, axes) for operand in ins]


def _permuted(x: Any, axis_name: Any, perm: Sequence[tuple[int, int]]) -> Any:
    """`ppermute`, also where some devices receive nothing, which then have zeros."""
    size = lax.axis_size(axis_name)
    sources = {to: source for source, to in perm}
    table = jnp.array([sources.get(device, size) for device in range(size)])
    sent = lax.all_gather(x, axis_name)
    received = table[lax.axis_index(axis_name)]
    return jnp.take(sent, received, axis=0, mode="fill", fill_value=0)


def _gathered(x: Any, **params: Any) -> Any:
    axis, tiled = params["all_gather_dimension"], params["tiled"]
    return lax.all_gather(x, params["axis_name"], axis=axis, tiled=tiled)


def _reduced(name: str) -> Primitive:
    return Primitive(name, rule=collective, cost=negligible)


PRIMITIVES = (
    _reduced("pmax"),
    _reduced("pmin"),
    _reduced("psum"),
    Primitive("all_gather_invariant", without_devices=_gathered),
    Primitive("ppermute", without_devices=_permuted),
    Primitive("psum_invariant", without_devices=lambda x, axes: lax.psum(x, axes)),
    Primitive("pvary", without_devices=lambda x, axes: x),
)
