"""Depth: how far into a network each leaf lies, read off the numbers in its path."""

import re
from collections.abc import Iterable

_PART = re.compile(r"[^/.]*(?:[/.]|$)")
_NUMBERED = re.compile(r"^(.*?)(\d+)$")


def depths(leaves: Iterable[str]) -> dict[str, float]:
    """Return the depth of every leaf that is in a numbered layer.

    The outermost part of a path that ends in a number, and of which there are several,
    is the layer: `layers_3`, or `7` in `encoder/layers/7` and `encoder.layers.7`.
    Of L layers the n-th, from 0, lies at n / (L - 1), as in mergekit.

    Args:
        leaves: their paths.

    Returns:
        Path -> depth in [0, 1]; leaves in no layer are left out.

    Example:
        >>> depths(["layer_0/w", "layer_1/w", "layer_2/w", "head/w"])
        {'layer_0/w': 0.0, 'layer_1/w': 0.5, 'layer_2/w': 1.0}
    """
    leaves = list(leaves)
    stacks: dict[str, set[int]] = {}
    for path in leaves:
        for stack, number in _numbered(path):
            stacks.setdefault(stack, set()).add(number)
    found = {}
    for path in leaves:
        for stack, number in _numbered(path):
            if len(stacks[stack]) > 1:
                numbers = sorted(stacks[stack])
                found[path] = numbers.index(number) / (len(numbers) - 1)
                break
    return found


def depth_in_stack(layer: int, layers: int) -> float:
    """Return the depth of one layer of a leaf that holds several.

    Example:
        >>> depth_in_stack(1, 3), depth_in_stack(0, 1)
        (0.5, 1.0)
    """
    return layer / (layers - 1) if layers > 1 else 1.0


def _numbered(path: str) -> list[tuple[str, int]]:
    """Return the numbered parts of a path, each with all that is before its number."""
    found, before = [], ""
    for part in _PART.findall(path):
        if match := _NUMBERED.match(part.rstrip("/.")):
            found.append((f"{before}{match[1]}", int(match[2])))
        before += part
    return found
