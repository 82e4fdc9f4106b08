"""Sharding: arrays that are spread over devices, of one process or of several.

Everything that is computed under `jit` runs where its operands are. What remains is to
keep results spread as their operands were, and to bring small results to the host.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def automatic(tree: PyTree) -> PyTree:
    """Return variables or a batch whose shardings are no part of their types.

    On a mesh of explicit axes every operation has to know how its result is spread,
    which a model written for one device does not say. The arrays stay where they are.

    Args:
        tree: any pytree.

    Returns:
        The same leaves; arrays on explicit axes on a mesh of automatic ones.
    """
    return jax.tree.map(_automatic, tree)


@dataclass(frozen=True)
class Automatic:
    """Batches of which each is made `automatic`.

    Attributes:
        batches: a re-iterable.
    """

    batches: Iterable[PyTree]

    def __iter__(self) -> Iterator[PyTree]:
        """Go through the batches."""
        return map(automatic, self.batches)


def mesh_of_all() -> Mesh:
    """Return all devices of all processes in a row."""
    return jax.make_mesh(
        (jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,)
    )


def along_longest(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Spread an array along its longest axis that divides among the devices of a row.

    Args:
        mesh: of one axis.
        shape: of the array.

    Returns:
        How it is spread; every device has all of it if no axis divides.
    """
    axes = [n for n, length in enumerate(shape) if length and length % mesh.size == 0]
    longest = max(axes, key=lambda n: shape[n], default=None)
    return _along(mesh, longest)


def _along(mesh: Mesh, axis: int | None) -> NamedSharding:
    if axis is None:
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, *mesh.axis_names))


@dataclass(frozen=True)
class Spread:
    """Batches that every process reads whole, each spread over the devices of a row.

    Samples are spread where their number divides among the devices.

    Attributes:
        batches: a re-iterable, of the same batches in every process.
        mesh: of one axis.
    """

    batches: Iterable[PyTree]
    mesh: Mesh

    def __iter__(self) -> Iterator[PyTree]:
        """Go through the batches."""
        return (jax.tree.map(self._spread, batch) for batch in self.batches)

    def _spread(self, leaf: Any) -> Any:
        if not hasattr(leaf, "dtype"):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(leaf, _along(self.mesh, None))
        array = np.asarray(leaf)
        divides = array.ndim and len(array) and len(array) % self.mesh.size == 0
        return spread(array, _along(self.mesh, 0 if divides else None))


def spread(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Put an array that every process has whole on the devices of all of them."""
    kept = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    return jax.make_array_from_callback(kept.shape, sharding, lambda part: kept[part])


def sharding_of(leaf: Any) -> NamedSharding | None:
    """Return how an array is spread over several devices; None if it is not."""
    sharding = getattr(leaf, "sharding", None)
    spread = isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
    return sharding if spread else None


def to_host(array: Any) -> np.ndarray:
    """Copy an array to the host, wherever its parts are.

    Every process must call this alike.

    Args:
        array: of any kind.

    Returns:
        All of it, in every process.
    """
    is_here = not isinstance(array, jax.Array) or (
        array.is_fully_addressable or array.is_fully_replicated
    )
    if is_here:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def over_processes(parts: PyTree, source: PyTree) -> list[PyTree]:
    """Gather what every process made of data of its own.

    Every process must call this alike, with arrays of the same shapes.

    Args:
        parts: small arrays that this process holds all of.
        source: what they were made of.

    Returns:
        One tree for each process, in their order, the same in every process; only
        `parts` if there is one process, or the source is spread over all of them.
    """
    arrays = [leaf for leaf in jax.tree.leaves(source) if isinstance(leaf, jax.Array)]
    is_shared = not all(array.is_fully_addressable for array in arrays)
    if jax.process_count() == 1 or is_shared:
        return [parts]
    stacked = multihost_utils.process_allgather(parts)
    return [
        jax.tree.map(lambda x, n=number: jnp.asarray(x[n]), stacked)
        for number in range(jax.process_count())
    ]


def placed_like(array: Any, leaf: Any) -> Any:
    """Put an array where a leaf of its shape is."""
    sharding = sharding_of(leaf)
    return array if sharding is None else jax.device_put(array, sharding)


def from_host(array: np.ndarray, leaf: Any) -> jax.Array:
    """Put an array of the host on the device of a leaf; nothing is compiled.

    Args:
        array: of the host.
        leaf: of any kind, on no more than one device.
    """
    is_bound = isinstance(leaf, jax.Array) and leaf.committed
    return jax.device_put(array, leaf.sharding if is_bound else None)


def is_explicit(tree: PyTree) -> bool:
    """Whether an array of a tree is on a mesh with explicit axes."""
    return any(map(_is_explicit, jax.tree.leaves(tree)))


def _automatic(leaf: Any) -> Any:
    sharding = sharding_of(leaf)
    if sharding is None or not _is_explicit(leaf):
        return leaf
    mesh = sharding.mesh
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    unnamed = Mesh(np.asarray(mesh.devices), mesh.axis_names, axis_types=kinds)
    return jax.device_put(leaf, NamedSharding(unnamed, sharding.spec))


def _is_explicit(leaf: Any) -> bool:
    sharding = sharding_of(leaf)
    if sharding is None or not isinstance(leaf, jax.Array):
        return False
    return any(kind != AxisType.Auto for kind in sharding.mesh.axis_types)
