"""Flax pairs: adapters whose factors are leaves of a JAX tree, found by patterns."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.lazy import Leaf
from jmudsc.lora.lora import Lora, Update

_WHERE = "lora_from_tree"
# What is changed, and the factors that read and that write: of `nnx.LoRALinear`, of
# `nnx.LoRA` and layers like it, of qwix (and so tunix) and openpi.
PAIRS = (
    ("*", ("*/lora/lora_a", "*/lora/lora_b")),
    ("*", ("*/lora_a", "*/lora_b")),
    ("*", ("*_lora_a", "*_lora_b")),
)
_VALUE = "/value"  # what the leaves of an `nnx.State` end in


def lora_from_tree(
    tree: PyTree,
    pairs: Mapping[str, tuple[str, str]] | None = None,
    *,
    alpha: float | int | None = None,
    rslora: bool = False,
    replace: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Lora:
    """Take a LoRA adapter from a tree of JAX arrays.

    A factor that reads is (..., *in, rank), one that writes (..., rank, *out); the
    leading axes of both are those of stacked layers or experts. Their product is that
    of a leaf (..., *in, *out), or as `axes` of `fold_lora` says.

    Args:
        tree: with the factors; a state of NNX, what `load` returns.
        pairs: pattern of what is changed, a leaf or its layer -> the patterns of the
            factor that reads and of the one that writes, `{"*/kernel": ("*/lora_a",
            "*/lora_b")}`; `*` is the same text in all three. Those of `nnx.LoRA`,
            `nnx.LoRALinear`, qwix (tunix) and openpi, if None.
        alpha: the product is times `alpha / rank`, as in qwix; not scaled, as in
            `nnx.LoRA`, if None.
        rslora: whether it is times `alpha / sqrt(rank)` instead.
        replace: patterns of leaves that take the place of those of the base.
        ignore: patterns of leaves that are no part of the adapter, such as the frozen
            base.

    Returns:
        The adapter, for `fold_lora` and `merge_loras`.

    Raises:
        ValueError: if a pattern does not name a pair or matches nothing, or listing the
            factors that have no partner or do not fit, or the leaves that are neither.

    Example:
        >>> import numpy as np
        >>> layer = {"lora_a": np.ones((3, 1)), "lora_b": np.ones((1, 2))}
        >>> lora_from_tree({"mlp": layer}).updates["mlp"].rank
        1
    """
    leaves = {
        path.removesuffix(_VALUE): leaf for path, leaf in paths.flatten(tree).items()
    }
    replace, ignore = list(replace), list(ignore)
    for patterns in (replace, ignore):
        advice = "Give whole leaf paths; * stands for any text."
        paths.check_patterns(_WHERE, patterns, leaves, "leaf", advice)
    found = _paired(leaves, _checked(pairs) if pairs else PAIRS)
    used = {path for pair in found.values() for path in pair if path}
    whole = {x: leaf for x, leaf in leaves.items() if paths.matches(x, replace)}
    rest = [
        path
        for path in leaves
        if path not in used and path not in whole and not paths.matches(path, ignore)
    ]
    _check(leaves, found, rest)
    updates = {
        target: Update(
            leaves[a], leaves[b], _scale(alpha, rslora, np.shape(leaves[a])[-1])
        )
        for target, (a, b) in found.items()
        if a and b
    }
    return Lora("adapter", updates, whole)


def _checked(pairs: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, str]], ...]:
    wrong = [
        f"{target!r}: {pair!r}"
        for target, pair in pairs.items()
        if len(pair) != 2 or any(x.count("*") != target.count("*") for x in pair)
    ]
    if wrong:
        raise ValueError(
            f"{_WHERE}: expected two patterns with as many * as what they change, got "
            f"others in {len(wrong)} of {len(pairs)}. Correct pairs:\n"
            f"{paths.listed(wrong)}"
        )
    return tuple(pairs.items())


def _paired(
    leaves: Mapping[str, Leaf], pairs: Iterable[tuple[str, tuple[str, str]]]
) -> dict[str, tuple[str | None, str | None]]:
    """Return target -> the paths of its factors, None where one is not there."""
    names = {path: path for path in leaves}
    found: dict[str, tuple[str | None, str | None]] = {}
    for target, pair in pairs:
        free = {x: x for x in names if all(x not in each for each in found.values())}
        sides = [
            {texts: path for path, texts in paths.starred(side, free).items()}
            for side in pair
        ]
        for texts in {**sides[0], **sides[1]}:
            a, b = (side.get(texts) for side in sides)
            found[paths.filled(target, texts)] = a, b
    return found


def _check(
    leaves: Mapping[str, Leaf],
    found: Mapping[str, tuple[str | None, str | None]],
    rest: list[str],
) -> None:
    if not found:
        raise ValueError(
            f"{_WHERE}: expected factors of low-rank updates, got none in "
            f"{paths.plural(len(leaves), 'leaf', 'leaves')}. Pass pairs=, what is "
            'changed -> its two factors: {"*/kernel": ("*/lora_a", "*/lora_b")}.'
        )
    alone = [f"{a or b}" for a, b in found.values() if not (a and b)]
    if alone:
        raise ValueError(
            f"{_WHERE}: expected both factors of every update, got one alone for "
            f"{len(alone)} of {len(found)}. Correct pairs:\n{paths.listed(alone)}"
        )
    shapes = {
        target: (np.shape(leaves[a]), np.shape(leaves[b]))
        for target, (a, b) in found.items()
        if a and b
    }
    unlike = [
        f"{target}: A of shape {list(a)}, B of shape {list(b)}"
        for target, (a, b) in shapes.items()
        if len(a) < 2 or len(b) < 2 or a[-1] not in b[:-1]
    ]
    if unlike:
        raise ValueError(
            f"{_WHERE}: expected factors (..., in, rank) and (..., rank, out), got "
            f"other ranks for {len(unlike)} of {len(shapes)}. Pair each with its own:\n"
            f"{paths.listed(unlike)}"
        )
    if rest:
        raise ValueError(
            f"{_WHERE}: expected factors of updates alone, got "
            f"{paths.plural(len(rest), 'leaf', 'leaves')} besides. Say what they are "
            f'by replace= or ignore=["*"]:\n{paths.listed(rest)}'
        )


def _scale(alpha: float | int | None, rslora: bool, rank: int) -> float:
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if rslora else rank)
