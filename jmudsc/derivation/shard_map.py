"""Shard map: evaluated without devices, as a `vmap` over the parts of a mesh.

A function under `shard_map` sees its device's part of each array. Here an axis that is
spread over devices is cut into (devices, part), and the function is mapped over the
devices' axis; `vmap` turns collectives into sums and gathers over it. What remains is
ordinary operations on whole arrays.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Evaluate = Callable[[Any, Sequence[Any]], list[Any]]


def on_whole_arrays(
    params: dict[str, Any], ins: Sequence[Any], evaluate: Evaluate
) -> list[Any]:
    """Compute a `shard_map` equation without devices.

    Args:
        params: of the equation.
        ins: its operands, whole.
        evaluate: `(jaxpr, args) -> outputs`, for the program inside.

    Returns:
        The outputs, whole.
    """
    sizes = dict(params["mesh"].shape)
    names = [name for name in sizes if name in params["newly_manual_axes"]]
    specs = params["in_specs"], params["out_specs"]
    ways_in, ways_out = ([_spread(spec) for spec in side] for side in specs)
    parts = [_cut(x, way, sizes, names) for x, way in zip(ins, ways_in, strict=True)]

    def mapped(*args: Any) -> list[Any]:
        return evaluate(params["jaxpr"], args)

    replicated = None if params["check_vma"] else 0
    for name in reversed(names):
        mapped = jax.vmap(
            mapped,
            in_axes=tuple(0 if _has(way, name) else None for way in ways_in),
            out_axes=[0 if _has(way, name) else replicated for way in ways_out],
            axis_name=name,
            axis_size=sizes[name],
        )
    outs = mapped(*parts)
    if not params["check_vma"]:
        outs = [_one_copy(x, w, names) for x, w in zip(outs, ways_out, strict=True)]
    return [_join(x, way, names) for x, way in zip(outs, ways_out, strict=True)]


Way = list[tuple[str, ...]]  # per axis the mesh axes it is spread over, outermost first


def _spread(spec: Any) -> Way:
    return [
        () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for entry in spec
    ]


def _has(way: Way, name: str) -> bool:
    return any(name in entry for entry in way)


def _cut(array: Any, way: Way, sizes: dict[str, int], names: Sequence[str]) -> Any:
    """Cut axes into (devices, part) and bring the devices' axes to the front."""
    shape, where = [], {}
    for axis, size in enumerate(jnp.shape(array)):
        spread = way[axis] if axis < len(way) else ()
        for name in spread:
            where[name] = len(shape)
            shape.append(sizes[name])
        shape.append(size // math.prod(sizes[name] for name in spread))
    front = [where[name] for name in names if name in where]
    return jnp.moveaxis(jnp.reshape(array, shape), front, range(len(front)))


def _join(array: Any, way: Way, names: Sequence[str]) -> Any:
    """Put the devices' axes back before the parts they were cut from, and flatten."""
    front = [name for name in names if _has(way, name)]
    parts, sizes = (
        array.shape[len(front) :],
        dict(zip(front, array.shape, strict=False)),
    )
    places, shape = {}, []
    for axis, size in enumerate(parts):
        spread = way[axis] if axis < len(way) else ()
        for name in spread:
            places[name] = axis + len(places)
        shape.append(size * math.prod(sizes[name] for name in spread))
    moved = jnp.moveaxis(array, range(len(front)), [places[name] for name in front])
    return jnp.reshape(moved, shape)


def _one_copy(array: Any, way: Way, names: Sequence[str]) -> Any:
    """Drop the devices' axes along which all copies are alike."""
    copies = [axis for axis, name in enumerate(names) if not _has(way, name)]
    return jnp.max(array, axis=tuple(copies))
