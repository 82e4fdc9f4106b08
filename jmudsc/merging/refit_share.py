"""Refit share: how many of the parameters of a network a refit reached."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.repairs.least_squares import FITTED


def refit_parameters(network: PyTree, changes: Mapping[str, str]) -> tuple[int, int]:
    """Count the parameters of the leaves that a refit changed.

    Args:
        network: the refit variables.
        changes: path of a leaf -> what was done with it, or why nothing was.

    Returns:
        How many there are, and how many parameters in all.
    """
    sizes = {
        path: np.size(leaf)
        for path, leaf in paths.flatten(network).items()
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    }
    done = [path for path, said in changes.items() if not said.startswith("is ")]
    return sum(sizes.get(path, 0) for path in done), sum(sizes.values())


def refit_sentence(network: PyTree, changes: Mapping[str, str]) -> str | None:
    """Say how many parameters a refit changed, and why it left kernels.

    Args:
        network: the refit variables.
        changes: path of a leaf -> what was done with it, or why nothing was.

    Returns:
        A sentence; None if there was no refit.
    """
    if not any(said.startswith(FITTED) for said in changes.values()):
        return None
    done, total = refit_parameters(network, changes)
    sentence = (
        f"The refit changed {done:,} of {total:,} parameters ({done / total:.0%})"
    )
    left = sorted({said for said in changes.values() if said.startswith("is ")})
    if left:
        sentence += f"; it left kernels of which each {', or '.join(left)}"
    return sentence + "."
