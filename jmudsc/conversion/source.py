"""Source: the named arrays of a file that another library wrote."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

# How a weight lies: (out, in, *window) as in torch, or (*window, in, out) as in JAX.
Layout = Literal["torch", "jax"]


@dataclass(frozen=True)
class Source:
    """The arrays of a file.

    Attributes:
        arrays: name -> array.
        namings: the ways to name them: of each, name in `arrays` -> name to go by. The
            one that fits best is taken.
        layouts: name -> how a weight lies, where the file says so.
    """

    arrays: Mapping[str, np.ndarray]
    namings: tuple[Mapping[str, str], ...] = ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
