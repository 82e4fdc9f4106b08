"""What a row of the conformance table is: a network and the labels it must have.

A network is a function of `leaf` and a batch: `leaf("conv/kernel", 3, 3, 4, 8)` is the
leaf of that name and shape. The labels of a row are written by hand, from knowledge of
the network: `"stream 12, heads 3, query/key 4 per heads"` are three labels, the last
one nested in the second. A label that stays in place but has others nested in it is
`"layers 4 fixed"`.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from nets import Net, random_leaves

from jmudsc import paths, PermutationSpec

Forward = Callable[[Callable[..., jax.Array], Any], Any]
Nesting = tuple[int, tuple[int, ...], bool]


@dataclass(frozen=True)
class Row:
    """A network with what must be found in it.

    Attributes:
        make: builds the network.
        labels: its labels, as in the docstring of this module.
        blind: labels of which nothing can be seen in activations, by name.
        limit: the symmetry that is known to be missed, and why; empty for most.
    """

    make: Callable[[], Net]
    labels: str
    blind: str = ""
    limit: str = ""

    @property
    def expected(self) -> Counter[Nesting]:
        """How often each size, with the sizes of the parents, must be found."""
        return Counter(self._nesting.values())

    @property
    def unseen(self) -> Counter[Nesting]:
        """The same of the labels of which activations say nothing."""
        return Counter(self._nesting[name] for name in self.blind.split())

    @property
    def _nesting(self) -> dict[str, Nesting]:
        found: dict[str, Nesting] = {}
        for entry in filter(None, self.labels.split(", ")):
            name, size, *rest = entry.split()
            is_fixed = rest[:1] == ["fixed"]
            parents = [found[p][0] for p in rest[1:]] if rest[:1] == ["per"] else []
            found[name] = (int(size), tuple(parents), is_fixed)
        return found


def nesting(spec: PermutationSpec, names: Iterable[str]) -> Counter[Nesting]:
    """Return how often some labels have each size, with the sizes of the parents."""
    labels = [spec.labels[name] for name in names]
    return Counter(
        (
            label.size,
            tuple(spec.labels[parent].size for parent in label.parents),
            label.fixed is not None,
        )
        for label in labels
    )


def plain(forward: Forward, *batch: Any, seed: str = "conformance") -> Net:
    """Build a network from its function.

    Args:
        forward: `(leaf, *batch) -> outputs`.
        batch: shapes of float inputs, drawn at random, or the inputs themselves.
        seed: of the leaves.
    """
    inputs = tuple(
        drawn(x, f"input {i}") if isinstance(x, tuple) else x
        for i, x in enumerate(batch)
    )
    shapes: dict[str, tuple[int, ...]] = {}

    def shape_only(name: str, *shape: int) -> jax.Array:
        shapes[name] = shape
        return jnp.zeros(shape)

    jax.eval_shape(lambda *xs: forward(shape_only, *xs), *inputs)
    leaves = random_leaves(shapes, seed)

    def apply_fn(variables: Any, inputs: Any) -> Any:
        return forward(lambda name, *shape: variables[name], *inputs)

    return Net(apply_fn, leaves, inputs)


def of_tree(apply_fn: Callable, tree: Any, batch: Any, seed: str) -> Net:
    """Build a network from the shapes of its variables, filled at random."""
    shapes = {path: np.shape(leaf) for path, leaf in paths.flatten(tree).items()}
    return Net(apply_fn, paths.unflatten(tree, random_leaves(shapes, seed)), batch)


def drawn(shape: tuple[int, ...], seed: str) -> np.ndarray:
    """Draw an input."""
    generator = np.random.default_rng(zlib.crc32(seed.encode()))
    return generator.normal(size=shape).astype(np.float32)


def positions(shape: tuple[int, ...], size: int) -> np.ndarray:
    """Draw integers in [0, size)."""
    generator = np.random.default_rng(3)
    return generator.integers(0, size, shape).astype(np.int32)
