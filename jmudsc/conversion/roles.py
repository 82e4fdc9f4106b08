"""Roles: what a leaf is to its layer, by the names that libraries have for it."""

import re
from dataclasses import dataclass

_WORDS = {
    "weight": "kernel weight w embedding embeddings table",
    "scale": "scale gamma",
    "bias": "bias b beta offset",
    "mean": "mean running_mean moving_mean",
    "var": "var running_var moving_variance moving_var variance",
}
_ROLE_OF = {word: role for role, words in _WORDS.items() for word in words.split()}
# Groups that say nothing of which layer a leaf is of.
_GROUPS = ("params", "batch_stats", "value")
# The order in which Keras numbers the variables of a layer.
ORDER = ("weight", "recurrent_kernel", "scale", "bias", "mean", "var")


@dataclass(frozen=True)
class Role:
    """Which leaf of which layer a name means, in no library's words.

    Attributes:
        layer: the words of the layer's path.
        leaf: what it is to the layer; its own name, if that is not known.
    """

    layer: tuple[str, ...]
    leaf: str

    def __str__(self) -> str:
        return "/".join((*self.layer, self.leaf))


def role_of(path: str, axes: int) -> Role:
    """Return the role of a leaf.

    Args:
        path: its name, with words between `/`, `.` or `:`.
        axes: how many it has: a weight of one axis is a scale.

    Example:
        >>> role_of("params/fc/kernel", 2) == role_of("fc.weight", 2)
        True
    """
    words = [word for word in re.split(r"[/.:]", path) if word]
    last = words[-1] if words else ""
    leaf = _ROLE_OF.get(last, last)
    leaf = "scale" if leaf == "weight" and axes < 2 else leaf
    return Role(tuple(word for word in words[:-1] if word not in _GROUPS), leaf)


def is_table(path: str) -> bool:
    """Whether a leaf is a table of embeddings, which all libraries store alike."""
    return re.split(r"[/.:]", path)[-1] in ("embedding", "embeddings", "table")


def is_torchs(path: str) -> bool:
    """Whether a leaf is called as torch calls it."""
    return re.split(r"[/.:]", path)[-1] == "weight"
