"""Compiled: what was compiled for a function, kept as long as the function is there.

What is traced anew is compiled anew, seconds of every call on an accelerator.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Made = TypeVar("Made")

# Function -> key -> what was made, the latest last.
_KEPT: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()
# How many things are kept for one function.
_MOST = 16


def kept(function: Any, key: Hashable, make: Callable[[], Made]) -> Made:
    """Return what was made for a function before, or make it.

    Args:
        function: any callable; what is made must not refer to it, or both stay for
            ever. A function that cannot be referred to weakly has nothing kept.
        key: all else that decides what is made.
        make: makes it.

    Returns:
        It.
    """
    try:
        made = _KEPT.setdefault(function, {})
    except TypeError:
        return make()
    if key not in made:
        made[key] = make()
        for oldest in list(made)[:-_MOST]:
            del made[oldest]
    return made[key]
