"""Keys: whether what is given as a PRNG key is one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_key(where: str, key: Any) -> None:
    """Check that a key is one PRNG key, typed or of raw words.

    Args:
        where: the caller, named in the error.
        key: from `jax.random.key` or `jax.random.PRNGKey`; the words of a raw key may
            be in a numpy array.

    Raises:
        TypeError: if it is anything else.
    """
    shape, dtype = getattr(key, "shape", None), getattr(key, "dtype", None)
    if dtype is not None:
        is_typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
        words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
        if shape == () if is_typed else (dtype == np.uint32 and shape == words):
            return
    is_seed = isinstance(key, int | np.integer) and not isinstance(key, bool)
    seed = int(key) if is_seed and abs(int(key)) < 2**32 else 0
    raise TypeError(
        f"{where}: key: expected one PRNG key, got {_kind(key)}. Pass "
        f"jax.random.key({seed})."
    )


@jax.jit
def two_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split a key in two, as `jax.random.split` does, in one program.

    Args:
        key: a PRNG key.
    """
    one, other = jax.random.split(key)
    return one, other


def _kind(key: Any) -> str:
    if key is None:
        return "None"
    if hasattr(key, "dtype") and np.shape(key):
        return f"an array {key.dtype}{list(key.shape)}"
    return f"an object of type {type(key).__name__}"
