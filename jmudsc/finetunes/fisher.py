"""Fisher: the mean weighted by how much each model's output depends on each entry."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.finetunes.piece import Piece
from jmudsc.finetunes.task_batches import examples_in
from jmudsc.types import ApplyFn


def fisher(piece: Piece) -> np.ndarray:
    """Weight each entry by its Fisher information (Matena & Raffel, arXiv:2111.09832).

    That of a model is divided by its norm over the whole tree, and at least `floor`.
    """
    floor = piece.options["floor"]
    shares = [each + floor for each in piece.evidence["fisher"]]
    total = functools.reduce(np.add, shares)
    pairs = zip(shares, piece.models, strict=True)
    return functools.reduce(np.add, [share / total * model for share, model in pairs])


def gradient_squares(
    where: str, apply_fn: ApplyFn, variables: PyTree, batches: Iterable[PyTree]
) -> dict[str, np.ndarray]:
    """Return the mean square of the gradient of the log-likelihood, entry by entry.

    Over examples, and over classes by the probability that the model itself gives
    them. It costs a backward pass for every example and class.

    Args:
        where: the caller, named in errors.
        apply_fn: `(variables, batch) -> logits`, (examples, classes).
        variables: of the model.
        batches: of its task.

    Returns:
        Path -> float64, for leaves of real numbers.

    Raises:
        ValueError: if the outputs are no logits.
    """
    leaves = {
        path: jnp.asarray(leaf)
        for path, leaf in paths.flatten(variables).items()
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }
    rest = paths.flatten(variables)

    def log_probabilities(moving: dict[str, Array], example: PyTree) -> Array:
        tree = paths.unflatten(variables, rest | moving)
        out = apply_fn(tree, jax.tree.map(lambda x: x[None], example))
        if not hasattr(out, "ndim") or out.ndim != 2:
            shape = jax.tree.map(jnp.shape, out)
            raise ValueError(
                f"{where}: expected outputs of shape (examples, classes) for fisher, "
                f"got {shape}. Pass an apply_fn that returns logits."
            )
        return jax.nn.log_softmax(out[0].astype(jnp.float32))

    @jax.jit
    def squares(moving: dict[str, Array], batch: PyTree) -> dict[str, Array]:
        def of_example(example: PyTree) -> dict[str, Array]:
            found, back = jax.vjp(lambda m: log_probabilities(m, example), moving)

            def of_class(total: dict[str, Array], number: Array) -> tuple[Any, None]:
                (gradient,) = back(jax.nn.one_hot(number, len(found)))
                chance = jnp.exp(found[number])
                add = lambda t, g: t + chance * jnp.square(g.astype(jnp.float32))
                return jax.tree.map(add, total, gradient), None

            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), moving)
            return jax.lax.scan(of_class, zeros, jnp.arange(len(found)))[0]

        each = lambda total, x: (jax.tree.map(jnp.add, total, of_example(x)), None)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), moving)
        return jax.lax.scan(each, zeros, batch)[0]

    total: dict[str, np.ndarray] = {}
    examples = 0
    for batch in batches:
        found = squares(leaves, jax.tree.map(jnp.asarray, batch))
        examples += examples_in(batch)
        for path, leaf in found.items():
            total[path] = total.get(path, 0.0) + np.asarray(leaf, np.float64)
    return {path: leaf / examples for path, leaf in total.items()}
