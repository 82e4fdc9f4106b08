"""Layout: how a leaf is cut into the matrices, or runs of entries, merged one by one.

One letter an axis: `l` runs over stacked layers, `b` over other things that are merged
apart (experts), `i` over what a matrix takes in, `o` over what it gives out. A leaf
without `i` is no matrix: a bias, a scale, a table that is looked up in.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jmudsc import paths
from jmudsc.finetunes.depth import depth_in_stack
from jmudsc.finetunes.settings import matched

LETTERS = "lbio"
_VECTORS = {"bias", "scale", "mean", "var", "gamma", "beta", "embedding"}
_TABLES = ("*embed*", "*lm_head*", "*wte*", "*wpe*")
_EXPERTS = ("*expert*", "*moe*")
_HEADS_OUT = {"query", "key", "value", "q", "k", "v", "qkv"}
_HEADS_IN = {"out", "o", "attn_out"}


@dataclass(frozen=True, eq=False)
class Layout:
    """How one leaf is cut.

    Attributes:
        letters: one an axis.
        index: for a matrix that letters cannot say, and where what goes into it is
            known: the places in the flattened leaf of the entries of each matrix,
            (matrices, in, out).
    """

    letters: str
    index: np.ndarray | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether the leaf holds matrices, rather than entries that stand alone."""
        return "i" in self.letters or self.index is not None

    def matrices(self, leaf: np.ndarray) -> np.ndarray:
        """Return the matrices of a leaf, (matrices, in, out)."""
        if self.index is not None:
            return leaf.reshape(-1)[self.index]
        moved = leaf.transpose(self._order())
        return moved.reshape(*self.sizes(leaf.shape))

    def with_matrices(self, leaf: np.ndarray, matrices: np.ndarray) -> np.ndarray:
        """Return a leaf in which the entries of matrices are others."""
        if self.index is not None:
            flat = leaf.reshape(-1).astype(matrices.dtype)
            flat[self.index] = matrices
            return flat.reshape(leaf.shape)
        order = self._order()
        moved = matrices.reshape([leaf.shape[axis] for axis in order])
        return moved.transpose(np.argsort(order))

    def runs(self, leaf: np.ndarray) -> np.ndarray:
        """Return the runs of entries that are merged together, (runs, entries)."""
        apart = self._axes("l") + self._axes("b")
        count = math.prod(leaf.shape[axis] for axis in apart)
        return np.moveaxis(leaf, apart, range(len(apart))).reshape(count, -1)

    def with_runs(self, leaf: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """Return a leaf of other entries, given in runs."""
        apart = self._axes("l") + self._axes("b")
        rest = [axis for axis in range(leaf.ndim) if axis not in apart]
        moved = runs.reshape([leaf.shape[axis] for axis in (*apart, *rest)])
        return np.moveaxis(moved, range(len(apart)), apart)

    @property
    def has_runs_in_order(self) -> bool:
        """Whether the runs of a leaf lie one after the other in it."""
        apart = self._axes("l") + self._axes("b")
        return apart == list(range(len(apart)))

    def count_of(self, shape: tuple[int, ...]) -> int:
        """Return the number of runs of a leaf of this shape."""
        apart = self._axes("l") + self._axes("b")
        return math.prod(shape[axis] for axis in apart)

    def depth(self, shape: tuple[int, ...], number: int, count: int) -> float | None:
        """Return the depth of one of the matrices or runs; None if it has none.

        Args:
            shape: of the leaf.
            number: of the matrix or run.
            count: of all matrices, or runs.
        """
        layers = math.prod(shape[axis] for axis in self._axes("l"))
        if "l" not in self.letters:
            return None
        return depth_in_stack(number * layers // count, layers)

    def _axes(self, letter: str) -> list[int]:
        return [axis for axis, has in enumerate(self.letters) if has == letter]

    def _order(self) -> list[int]:
        return [axis for letter in LETTERS for axis in self._axes(letter)]

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the number of matrices of a leaf of this shape, and their sizes."""
        if self.index is not None:
            matrices, into, out = self.index.shape
            return matrices, into, out
        size = {x: math.prod(shape[a] for a in self._axes(x)) for x in LETTERS}
        return size["l"] * size["b"], size["i"], size["o"]


def layout_of(path: str, shape: tuple[int, ...], given: Mapping[str, str]) -> Layout:
    """Lay a leaf out by what the user says of it, or by its name and rank.

    A leaf of two axes is a matrix (in, out), one called `weight` (out, in) as in torch;
    of three axes a stack of matrices, but for those of attention heads; of more a
    convolution. A convolution of one input channel is no matrix, and neither is a stack
    of single rows, a class token say, a bias, a scale, a statistic or a table of
    embeddings.

    Args:
        path: the leaf.
        shape: its shape.
        given: pattern of paths -> letters; the first that matches counts.
    """
    pattern = matched(path, given)
    if pattern is not None:
        return Layout(given[pattern])
    name, rank = path.split("/")[-1].split(".")[-1], len(shape)
    if rank < 2 or name in _VECTORS or paths.matches(path.lower(), _TABLES):
        return Layout("o" * rank)
    if name == "weight":
        return Layout("oi" + "i" * (rank - 2))
    if rank == 2:
        return Layout("io")
    above = path.split("/")[-2] if "/" in path else ""
    if rank <= 4 and above in _HEADS_OUT:
        return Layout(_stack(path) * (rank - 3) + "ioo")
    if rank <= 4 and above in _HEADS_IN:
        return Layout(_stack(path) * (rank - 3) + "iio")
    if rank == 3 and shape[-2] > 1:
        return Layout(_stack(path) + "io")
    return Layout("o" * rank if shape[-2] == 1 else "i" * (rank - 1) + "o")


def letters_problems(
    given: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return what is wrong with letters that a user gave.

    Args:
        given: pattern of paths -> letters.
        shapes: path -> shape, of all leaves.
    """
    found = []
    for pattern, letters in given.items():
        like = [path for path in shapes if matched(path, [pattern])]
        if not like:
            hint = paths.did_you_mean(pattern, shapes)
            found.append(f'axes: pattern "{pattern}" matches no leaf{hint}')
        if not isinstance(letters, str) or set(letters) - set(LETTERS):
            found.append(
                f'axes["{pattern}"]: expected the letters "l" (stacked layers), "b" '
                f'(apart), "i" (in) and "o" (out), got {letters!r}'
            )
            continue
        found += [
            f'axes["{pattern}"]: expected {len(shapes[path])} letters for {path} of '
            f'shape {list(shapes[path])}, got "{letters}"'
            for path in like
            if len(shapes[path]) != len(letters)
        ]
    return found


def _stack(path: str) -> str:
    return "b" if paths.matches(path.lower(), _EXPERTS) else "l"
