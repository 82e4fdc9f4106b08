"""Machine: what a merge was computed on, which decides its last bits."""

import os

import jax


def machine() -> str:
    """Return what kind of device computes here, and of a CPU how many of its cores.

    Sums are computed in parts, as many as there are cores, so that the last bits of
    statistics, and of what a refit or a repair makes of them, depend on their number.

    Example:
        >>> machine().partition(",")[0]
        'cpu'
    """
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    cores = cores_here()
    return f"{kind}, {cores} {'core' if cores == 1 else 'cores'}"


def cores_here() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
