"""Inputs: the second moments of what goes into each kernel of each model."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batches import batch_kind
from jmudsc.compiled import kept
from jmudsc.derivation.program import Program, run, trace
from jmudsc.finetunes.kernels import indexed, Kernel, kernels_of
from jmudsc.finetunes.leaf_layout import Layout
from jmudsc.repairs.contractions import rows
from jmudsc.sharding import to_host
from jmudsc.types import ApplyFn

Moments = dict[str, np.ndarray]


def input_layouts(
    apply_fn: ApplyFn, variables: PyTree, batch: PyTree
) -> dict[str, Layout]:
    """Return the kernels of which the inputs can be read, by places.

    Args:
        apply_fn: `(variables, batch) -> outputs`.
        variables: arrays or their shapes.
        batch: one batch.

    Returns:
        Path -> layout, whose matrices take in what `input_moments` gives moments of.
    """
    kernels = kernels_of(trace(apply_fn, variables, batch))
    found = {}
    for path, uses in kernels.uses.items():
        index = None if path in kernels.tables else indexed(uses)
        if index is not None and index.shape[-1] > 1:
            letters = _letters(kernels.stacked.get(path, 0), uses[0])
            found[path] = Layout(letters, index)
    return found


def input_moments(
    apply_fn: ApplyFn,
    variables: PyTree,
    batches: Iterable[PyTree],
    chosen: Sequence[str],
) -> Moments:
    """Return the mean of x x^T over what goes into each kernel of a model.

    Args:
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        variables: of the model.
        batches: its own task's.
        chosen: the paths of the kernels.

    Returns:
        Path -> (matrices, in, in), float64.
    """
    total: Moments = {}
    count: dict[str, int] = {}
    leaves = jax.tree.leaves(variables)
    for batch in batches:
        read = _kept(_Grams.of, apply_fn, variables, batch, chosen)
        for path, gram in read.sums([*leaves, *jax.tree.leaves(batch)]).items():
            total[path] = total.get(path, 0.0) + to_host(gram).astype(np.float64)
            count[path] = count.get(path, 0) + read.samples[path]
    return {path: gram / count[path] for path, gram in total.items()}


def scale_moments(
    apply_fn: ApplyFn,
    variables: PyTree,
    batches: Iterable[PyTree],
    chosen: Sequence[str],
) -> Moments:
    """Return the mean of x^2 over what each entry of a scale multiplies.

    Args:
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        variables: of the model.
        batches: its own task's.
        chosen: the paths of the scales.

    Returns:
        Path -> an array of the shape of the leaf, float64.
    """
    shapes = {path: np.shape(leaf) for path, leaf in paths.flatten(variables).items()}
    total = {path: np.zeros(shapes[path]) for path in chosen}
    count = {path: np.zeros(shapes[path]) for path in chosen}
    leaves = jax.tree.leaves(variables)
    for batch in batches:
        read = _kept(_Factors.of, apply_fn, variables, batch, chosen)
        values = iter(read.values([*leaves, *jax.tree.leaves(batch)]))
        for path, factors, index in read.uses:
            parts = [to_host(next(values)).astype(np.float64) for _ in range(factors)]
            squares = np.square(math.prod(parts))
            places, squares = np.broadcast_arrays(index, squares)
            places, squares = places.reshape(-1), squares.reshape(-1)
            size = total[path].size
            summed = np.bincount(places, squares, minlength=size)
            total[path] += summed.reshape(shapes[path])
            count[path] += np.bincount(places, minlength=size).reshape(shapes[path])
    return {path: total[path] / np.maximum(count[path], 1) for path in chosen}


def scales_in(apply_fn: ApplyFn, variables: PyTree, batch: PyTree) -> list[str]:
    """Return the leaves that scale activations, and do nothing else.

    Args:
        apply_fn: `(variables, batch) -> outputs`.
        variables: arrays or their shapes.
        batch: one batch.
    """
    kernels = kernels_of(trace(apply_fn, variables, batch))
    return [
        path
        for path in kernels.scales
        if path not in kernels.uses and path not in kernels.tables
    ]


@dataclass(frozen=True, eq=False)
class _Grams:
    """Sums the moments of what goes into kernels, over one batch of a kind.

    Attributes:
        sums: the compiled function of the leaves of variables and batch.
        samples: path -> over how many samples; known once `sums` was called.
    """

    sums: Callable[[Sequence[Any]], Mapping[str, jax.Array]]
    samples: Mapping[str, int]

    @staticmethod
    def of(program: Program, chosen: Sequence[str]) -> "_Grams":
        """Return that of the kernels of a program."""
        uses = {p: u for p, u in kernels_of(program).uses.items() if p in set(chosen)}
        places = [use.operand for each in uses.values() for use in each]
        samples: dict[str, int] = {}

        @jax.jit
        def sums(args: Sequence[Any]) -> Mapping[str, jax.Array]:
            values = iter(run(program, args, places))
            found = {}
            for path, each in uses.items():
                parts = [_gram(use, next(values)) for use in each]
                found[path] = functools.reduce(jnp.add, [gram for gram, _ in parts])
                samples[path] = sum(number for _, number in parts)
            return found

        return _Grams(sums, samples)


@dataclass(frozen=True, eq=False)
class _Factors:
    """Reads what scales multiply, on one batch of a kind.

    Attributes:
        values: the compiled function of the leaves of variables and batch.
        uses: of each use of a scale its path, the product of how many of the values it
            multiplies, and the places of its entries in the leaf.
    """

    values: Callable[[Sequence[Any]], Sequence[jax.Array]]
    uses: Sequence[tuple[str, int, np.ndarray]]

    @staticmethod
    def of(program: Program, chosen: Sequence[str]) -> "_Factors":
        """Return that of the scales of a program."""
        scales = kernels_of(program).scales
        uses = [(path, use) for path in chosen for use in scales[path]]
        places = [place for _, use in uses for place in use.operands]
        return _Factors(
            jax.jit(lambda args: run(program, args, places)),
            [(path, len(use.operands), use.view.index()) for path, use in uses],
        )


def _kept(
    make: Callable[[Program, Sequence[str]], Any],
    apply_fn: ApplyFn,
    variables: PyTree,
    batch: PyTree,
    chosen: Sequence[str],
) -> Any:
    """Return what is made of the program of batches of one kind, all models' alike."""
    key = make.__qualname__, tuple(chosen), batch_kind(variables), batch_kind(batch)
    traced = lambda: trace(apply_fn, variables, batch)
    return kept(apply_fn, key, lambda: make(traced(), chosen))


def _letters(stacked: int, use: Kernel) -> str:
    rank = len(use.view.shape)
    return "l" * stacked + "o" * (rank - stacked)


def _gram(use: Kernel, activations: jax.Array) -> tuple[jax.Array, int]:
    """Return the sum of x x^T for each matrix, and how many samples it is over.

    A loop in which one kernel is used again and again gives more samples.
    """

    def one(x: jax.Array) -> jax.Array:
        into = rows(use.form, x.astype(jnp.float32), use.shape)
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("gsi,gsj->gij", into, into, precision=highest)

    own = use.view.own
    loops = activations.shape[: len(own)]
    flat = activations.reshape(-1, *activations.shape[len(own) :])
    grams = jax.lax.map(one, flat)
    grams = grams.reshape(*loops, *grams.shape[1:])
    shared = tuple(axis for axis, is_own in enumerate(own) if not is_own)
    grams = grams.sum(axis=shared)
    again = math.prod(loops[axis] for axis in shared)
    rows_shape = jax.eval_shape(
        lambda x: rows(use.form, x, use.shape),
        jax.ShapeDtypeStruct(flat.shape[1:], jnp.float32),
    ).shape
    return grams.reshape(-1, *grams.shape[-2:]), again * rows_shape[1]
