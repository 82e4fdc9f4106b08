"""Processes: several that run the same program and do one thing together.

Every function here but `join` must be called alike by all of them.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Value = TypeVar("Value")

_LONGEST = 4096  # bytes of a text that is told


def join(
    coordinator: str | None = None, count: int | None = None, number: int | None = None
) -> None:
    """Make this process one of several that JAX runs together.

    To be called before JAX is used. Without arguments JAX finds out by itself how many
    there are, as it can on a TPU slice, under SLURM and under Open MPI.

    Args:
        coordinator: `HOST:PORT` at which the first process listens; the environment
            variable `JAX_COORDINATOR_ADDRESS` if None.
        count: how many processes there are.
        number: which of them this one is, from 0.

    Raises:
        ValueError: if only one of `count` and `number` is given, the number is none of
            `count`, or the processes do not find each other.
    """
    if (count is None) != (number is None) or (coordinator and count is None):
        raise ValueError(
            "processes: expected --coordinator, --processes and --process together, "
            "got only some of them. Give all three, or --distributed alone where JAX "
            "finds them out by itself."
        )
    if count is not None and number is not None and not 0 <= number < count:
        raise ValueError(
            f"--process: expected a number from 0 to {count - 1}, one for each of "
            f"{count} processes, got {number}. Give every process its own."
        )
    try:
        jax.distributed.initialize(coordinator, count, number)
    except (ValueError, RuntimeError) as error:
        said = str(error).strip().split("\n")[0]
        raise ValueError(
            f"processes: expected {count or 'several'} that find each other, got an "
            f"error ({said}). Start every process with the same --coordinator "
            "HOST:PORT and --processes N, and its own --process I."
        ) from error


def is_first() -> bool:
    """Whether this process is the only one, or the first, which speaks for all."""
    return jax.process_index() == 0


def in_all(step: Callable[[], Value]) -> Value:
    """Take a step in every process, and fail in all if it fails in one.

    Args:
        step: what to do; may wait for the same step of the other processes.

    Returns:
        What it gives in this process.

    Raises:
        ValueError: if another process failed; what the step raises if this one did.
    """
    made: list[Value] = []
    try:
        made.append(step())
    finally:  # if it failed, its own error is raised after the others were told
        failed = np.atleast_1d(multihost_utils.process_allgather(np.array(not made)))
    if failed.any():
        raise ValueError(
            f"processes: expected all {len(failed)} to go on, got an error in process "
            f"{int(np.argmax(failed))}. See what that one says."
        )
    return made[0]


def in_first(step: Callable[[], Value]) -> Value | None:
    """Take a step in the first process while the others wait; fail in all if it fails.

    Args:
        step: what to do.

    Returns:
        What it gives; None in the other processes.

    Raises:
        ValueError: if the first process failed and this is another.
    """
    return in_all(lambda: step() if is_first() else None)


def told_by_first(text: str | None) -> str:
    """Return the text that the first process passes.

    Args:
        text: up to 4 kB; does not matter in the other processes.
    """
    sent = np.zeros(_LONGEST, np.uint8)
    if is_first():
        content = np.frombuffer((text or "").encode(), np.uint8)
        sent[: len(content)] = content
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return received.astype(np.uint8).tobytes().rstrip(b"\0").decode()
