"""Losses: the losses of sums of networks, on a plane and between two of them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmudsc.landscape.plane import Plane
from jmudsc.progress import Progress, silent

# A function of variables whose value, a number, is small where they do their task well.
Loss = Callable[[PyTree], Any]

# The losses, by task, of the sum of some networks, each times its share.
Measure = Callable[[Sequence[PyTree], Sequence[float]], dict[str, float]]


def measure_by(
    losses: Mapping[str, Loss], settle: Callable[[PyTree], PyTree] | None = None
) -> Measure:
    """Return what measures the losses of sums of networks, each times its share.

    Sums are taken in float32 and have the dtypes of the networks; leaves that are not
    floating-point are those of the first. Losses that JAX can trace are compiled, with
    the sum, to one program for all points; others are called as they are.

    Args:
        losses: task -> `(variables) -> loss`, a number.
        settle: what is done with variables before they are measured, in Python: a reset
            of their running statistics, say.

    Returns:
        `(networks, shares) -> {task: loss}`.

    Raises:
        ValueError: (the function returned) if a loss is not a number.
    """
    compiled: dict[str, bool] = {}

    @jax.jit
    def traced(networks: Sequence[PyTree], shares: Array) -> dict[str, Any]:
        variables = mixed(networks, shares)
        return {
            task: losses[task](variables) for task, traces in compiled.items() if traces
        }

    def measure(
        networks: Sequence[PyTree], shares: Sequence[float]
    ) -> dict[str, float]:
        for task, loss in losses.items():
            if task not in compiled:
                compiled[task] = _is_traceable(loss, networks[0])
        weights = np.asarray(shares, np.float32)
        variables = None
        if settle or not all(compiled.values()):
            variables = mixed(networks, weights)
        if settle:
            variables = settle(variables)
            networks, weights = [variables], np.ones(1, np.float32)
        found = traced(networks, weights) if any(compiled.values()) else {}
        for task, loss in losses.items():
            if not compiled[task]:
                found[task] = loss(variables)
        return {task: real_number(f'loss "{task}"', found[task]) for task in losses}

    return measure


@jax.jit
def mixed(networks: Sequence[PyTree], shares: Float[Array, " networks"]) -> PyTree:
    """Add up networks, each times its share.

    Args:
        networks: variables of one structure.
        shares: one per network.

    Returns:
        Variables of that structure and of the dtypes of the first; leaves that are not
        floating-point are those of the first.
    """

    def mix(*leaves: Array) -> Array:
        dtype = jnp.result_type(leaves[0])
        if not jnp.issubdtype(dtype, jnp.inexact):
            return leaves[0]
        wide = jnp.promote_types(dtype, jnp.float32)
        parts = [
            s.astype(wide) * x.astype(wide) for s, x in zip(shares, leaves, strict=True)
        ]
        return functools.reduce(jnp.add, parts).astype(dtype)

    return jax.tree.map(mix, *networks)


def losses_on_plane(
    measure: Measure,
    plane: Plane,
    xs: Sequence[float] | np.ndarray,
    ys: Sequence[float] | np.ndarray,
    progress: Progress = silent,
) -> dict[str, Float[np.ndarray, "ys xs"]]:
    """Measure the losses on a grid of points of a plane.

    Args:
        measure: from `measure_by`.
        plane: the plane.
        xs: x of the columns of the grid, in the units of the variables.
        ys: y of the rows.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        Task -> losses.
    """
    points = [plane.shares(float(x), float(y)) for y in ys for x in xs]
    found = _at(measure, plane.networks, points, "measuring the plane", progress)
    return {t: np.reshape(values, (len(ys), len(xs))) for t, values in found.items()}


def losses_between(
    measure: Measure,
    first: PyTree,
    second: PyTree,
    steps: Sequence[float] | np.ndarray,
    progress: Progress = silent,
) -> dict[str, Float[np.ndarray, " steps"]]:
    """Measure the losses of `(1 - step) * first + step * second`.

    Args:
        measure: from `measure_by`.
        first: variables.
        second: variables of the same structure.
        steps: from 0, the first network, to 1, the second.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        Task -> losses.
    """
    # Three networks, as on a plane, so that one program serves both.
    points = [(1 - float(step), float(step), 0.0) for step in steps]
    networks = first, second, second
    return _at(measure, networks, points, "measuring the line", progress)


def barrier(
    losses: Sequence[float] | np.ndarray, steps: Sequence[float] | np.ndarray
) -> float:
    """Return how far the losses between two networks rise above the line of their own.

    The largest, over the steps, of `loss(step) - (1 - step) loss(0) - step loss(1)`. It
    is the barrier of Frankle et al. (2020, arXiv:1912.05671, section 2), but for the
    line between the losses of the two networks where they have the mean of the two
    (Entezari et al. 2022, arXiv:2110.06296, section 2): networks of different tasks
    have different losses.

    Args:
        losses: at the steps, of which the first is 0 and the last 1.
        steps: ascending.

    Returns:
        The barrier, 0 or more; NaN if a loss is.
    """
    losses, steps = np.asarray(losses, float), np.asarray(steps, float)
    line = (1 - steps) * losses[0] + steps * losses[-1]
    return float((losses - line).max())


def with_sum(losses: Mapping[str, Any]) -> dict[str, Any]:
    """Add the sum of all tasks to the losses, if there are several tasks."""
    total = {"sum": sum(losses.values())} if len(losses) > 1 else {}
    return {**losses, **total}


def real_number(where: str, value: Any) -> float:
    """Check that something is a real number.

    Args:
        where: what it is, named in the error.
        value: anything.

    Returns:
        The number.

    Raises:
        ValueError: if it is none.
    """
    is_array = isinstance(value, int | float | np.ndarray | np.generic | jax.Array)
    shape = f" of shape {list(np.shape(value))}" if is_array and np.ndim(value) else ""
    if not is_array or shape or np.iscomplexobj(value):
        raise ValueError(
            f"{where}: expected a real number, got a {type(value).__name__}{shape}. "
            "Return the mean over the samples, say."
        )
    return float(value)


def _at(
    measure: Measure,
    networks: Sequence[PyTree],
    points: Sequence[Sequence[float]],
    stage: str,
    progress: Progress,
) -> dict[str, np.ndarray]:
    measured: dict[str, list[float]] = {}
    for number, shares in enumerate(points):
        progress(stage, number, len(points))
        for task, loss in measure(networks, shares).items():
            measured.setdefault(task, []).append(loss)
    return {task: np.array(values) for task, values in measured.items()}


def _is_traceable(loss: Loss, variables: PyTree) -> bool:
    try:
        jax.eval_shape(loss, variables)
    except TypeError:  # it wants to know the values, as float(...) does
        return False
    return True
