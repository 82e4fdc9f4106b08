"""LoRA: what was trained beside a base: low-rank updates, and whole leaves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jmudsc.lazy import Leaf, present

# What an update changes: a layer of torch, or a leaf that has the order of its factors.
Kind = Literal["linear", "convolution", "embedding", "leaf"]


@dataclass(frozen=True, eq=False)
class Update:
    """A low-rank change of one matrix, or a stack of them: `scale * a @ b`.

    Attributes:
        a: the factor that reads: (..., *in, rank), of a convolution of torch
            (in, *window, rank), of a table of embeddings (rows, rank).
        b: the factor that writes: (..., rank, *out).
        scale: what the product is times.
        kind: what it changes.
        magnitude: of DoRA, the norm that each output of the changed matrix has, (out,);
            None without.
        bias: what is added to the bias of the layer, times the scale, (out,); None
            without.
    """

    a: Leaf
    b: Leaf
    scale: float = 1.0
    kind: Kind = "leaf"
    magnitude: Leaf | None = None
    bias: Leaf | None = None

    @property
    def rank(self) -> int:
        """The inner size of the product."""
        return np.shape(self.a)[-1]

    def factors(
        self, matrices: int, window_first: bool, dtype: np.typing.DTypeLike
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return both factors, not scaled, of every matrix.

        Args:
            matrices: how many there are.
            window_first: for a convolution, whether the leaf has its window before its
                inputs, as in Flax.
            dtype: in which numbers.

        Returns:
            (matrices, in, rank) and (matrices, rank, out).
        """
        a, b = (np.asarray(present(x)).astype(dtype) for x in (self.a, self.b))
        if self.kind == "convolution" and window_first:
            a = np.moveaxis(a, 0, -2)
        rank = a.shape[-1]
        return a.reshape(matrices, -1, rank), b.reshape(matrices, rank, -1)


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter, wherever its arrays are.

    Attributes:
        where: what to call it in errors: its path.
        updates: target -> its low-rank update.
        replaced: name -> a leaf that takes the place of that of the base.
        is_torch: whether names are those of torch modules, and replaced leaves have
            torch's order of axes; else names are paths of leaves or modules.
        fan_in_fan_out: whether linear layers of torch store (in, out).
    """

    where: str
    updates: Mapping[str, Update]
    replaced: Mapping[str, Leaf] = field(default_factory=dict)
    is_torch: bool = False
    fan_in_fan_out: bool = False
