"""Compiled: what was compiled for a function, kept as long as the function is there.

What is traced anew is compiled anew, seconds of every call on an accelerator. Between
processes JAX's compilation cache keeps programs, which the command line turns on.
"""

import hashlib
import weakref
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
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


def cache_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables by which JAX keeps programs between processes.

    They are in `jmudsc` in the user's cache directory (`XDG_CACHE_HOME`, `~/.cache` if
    that is not set), in a folder for this kind of processor. Whoever sets
    `JAX_COMPILATION_CACHE_DIR` decides where, `JAX_ENABLE_COMPILATION_CACHE=false`
    turns the cache off.

    Args:
        environment: the variables that are set.

    Returns:
        Those to set besides, before JAX is imported: none that are set.
    """
    home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(home) / "jmudsc" / "compiled" / _processor()
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return {name: x for name, x in settings.items() if name not in environment}


def _processor() -> str:
    """Name the kind of processor: programs for one may fail on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kind = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    return hashlib.sha256(kind.encode()).hexdigest()[:12]
