"""Orbax: read the leaves of an item, all or some, and write one.

Only public names of `orbax.checkpoint` are used, and imported when they are needed.
"""

import contextlib
import inspect
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree

from jmudsc.checkpoints.reading import first_line, reading, steady
from jmudsc.checkpoints.structure import Route
from jmudsc.checkpoints.subtrees import longer, prune, route
from jmudsc.lazy import in_memory, LazyArray, parts_of, read_all
from jmudsc.paths import flatten, unflatten

# The types that tensorstore, by which orbax stores, has in its oldest and newest.
_STORED = {
    "bool",
    *(f"{kind}{size}" for kind in ("int", "uint") for size in (8, 16, 32, 64)),
    *("int2", "int4", "float16", "float32", "float64", "bfloat16"),
    *("float4_e2m1fn", "float8_e3m4", "float8_e8m0fnu", "float8_e4m3b11fnuz"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("complex64", "complex128"),
}
_LONGEST = 65_000  # bytes in the name of an array, a little less than it may have


def open_tree(item: os.PathLike[str]) -> PyTree[LazyArray]:
    """Return the leaves of an item by what its metadata say.

    The oldest checkpoints have none, or not of all leaves: these are read.

    Args:
        item: a directory, from `find_item`.

    Returns:
        Nested dicts and lists, as they are stored.

    Raises:
        ValueError: if the item is damaged.
    """
    import orbax.checkpoint as ocp

    item = epath.Path(item)
    with _reading(item):
        if not (item / "_METADATA").exists():
            return in_memory(ocp.PyTreeCheckpointHandler().restore(item))
        metadata: Any = ocp.PyTreeCheckpointHandler().metadata(item)
    structure = metadata.tree
    if (item / "checkpoint").exists():  # orbax 0.4 put some leaves, or all, into it
        return in_memory(_read(item, structure, [()]))

    def fetch(names: Sequence[str]) -> Mapping[str, Any]:
        routes = [route(str(item), structure, name) for name in names]
        return flatten(_read(item, structure, routes))

    def fetch_spread(
        shardings: Mapping[str, jax.sharding.Sharding],
    ) -> Mapping[str, jax.Array]:
        routes = [route(str(item), structure, name) for name in shardings]
        return flatten(_read(item, structure, routes, shardings))

    read = fetch
    if "://" not in os.fspath(item):
        read = steady(str(item), Path(item / "_METADATA"), fetch)
    lazy = {}
    for name, leaf in flatten(structure).items():
        text = isinstance(leaf, ocp.metadata.StringMetadata)
        dtype = np.dtype("U" if text else leaf.dtype)
        shape = () if text else tuple(leaf.shape)
        spread = None if text else fetch_spread
        lazy[name] = LazyArray(name, shape, dtype, read, fetch_spread=spread)
    return unflatten(structure, lazy)


def write_tree(directory: Path, variables: PyTree[LazyArray]) -> None:
    """Write variables as one item, each read when it is its turn.

    Args:
        directory: to make.
        variables: the arrays.

    Raises:
        OSError: if orbax cannot write them.
    """
    import orbax.checkpoint as ocp

    failed: list[Exception] = []
    types = _lazy_types(failed)
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
    try:
        with _without_late_reports(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(directory, args=ocp.args.PyTreeSave(variables))
    except Exception as error:  # orbax and tensorstore have errors of many kinds
        if failed:
            raise failed[0] from None
        raise OSError(first_line(error)) from error


def write_spread(directory: Path, variables: PyTree[jax.Array]) -> None:
    """Write variables as one item, each process the parts that it has.

    Every process must call this alike.

    Args:
        directory: to make, on a file system that all processes see.
        variables: arrays on the devices of all processes.

    Raises:
        OSError: if orbax cannot write them.
    """
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler()
    try:
        with _without_late_reports(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(directory, args=ocp.args.PyTreeSave(variables))
    except Exception as error:  # orbax and tensorstore have errors of many kinds
        raise OSError(first_line(error)) from error


def holds(dtype: np.dtype) -> bool:
    """Whether orbax can store a type."""
    return str(dtype) in _STORED


def refused(names: Mapping[str, Route]) -> dict[str, str]:
    """Return the leaves that would not come back under their names, and why."""
    stored: dict[str, list[str]] = {}
    for path, keys in names.items():
        stored.setdefault(".".join(map(str, keys)), []).append(path)
    alike = {
        path: f'is "{name}" in orbax, and so is {another}'
        for name, paths in stored.items()
        for path, another in zip(paths, [*paths[1:], paths[0]], strict=True)
        if len(paths) > 1
    }
    long = f"has a name of more than {_LONGEST} bytes"
    unnamed = [
        path
        for path, keys in names.items()
        if any("" in str(key).split("/") for key in keys)
    ]
    return (
        alike
        | dict.fromkeys(longer(names, _LONGEST), long)
        | dict.fromkeys(unnamed, "has a key or a part of one that is empty")
    )


def files_of(item: os.PathLike[str]) -> list[Path]:
    """Return all that is in the directory of a local item, in order."""
    return sorted(Path(item).rglob("*"))


def _lazy_types(failed: list[Exception]) -> Any:
    """Return how orbax is to write lazy arrays: as it writes numpy's, some at once.

    Args:
        failed: takes up what reading an array raises.
    """
    from orbax.checkpoint import type_handlers

    class LazyHandler(type_handlers.NumpyHandler):
        async def serialize(self, values, infos, args=None):
            args = args or [type_handlers.SaveArgs()] * len(values)
            lazy: Any = dict(enumerate(values))
            for part in parts_of(lazy):
                try:
                    arrays = read_all(list(part.values()))
                except Exception as error:  # of any kind, to be raised as it is
                    failed.append(error)
                    raise
                where, how = [infos[n] for n in part], [args[n] for n in part]
                for future in await super().serialize(arrays, where, how):
                    future.result()
            return []

    # What is read is nobody else's, and need not be copied, as orbax 0.12 else does.
    known = inspect.signature(type_handlers.NumpyHandler).parameters
    options: dict[str, Any] = (
        {"deepcopy_host_arrays": False} if "deepcopy_host_arrays" in known else {}
    )
    return type_handlers.create_type_handler_registry(
        # Without one for jax.Array orbax warns that it keeps no shardings of them.
        (jax.Array, type_handlers.ArrayHandler()),
        (LazyArray, LazyHandler(**options)),
    )


def _read(
    item: epath.Path,
    structure: PyTree,
    routes: list[Route],
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> PyTree:
    """Read the leaves under `routes`, in a tree cut down to those.

    They are read to the host, or to where the shardings of their names say.
    """
    import orbax.checkpoint as ocp

    asked = prune(structure, routes)
    if not jax.tree.leaves(asked):
        return asked
    # Orbax 0.11 does not read None, which lists keep where they have it.
    asked = jax.tree.map(
        lambda x: ocp.PLACEHOLDER if x is None else x,
        asked,
        is_leaf=lambda x: x is None,
    )
    # With a type for every leaf orbax asks for no sharding, so it does not matter on
    # which devices the arrays were.
    array, text = ocp.RestoreArgs(restore_type=np.ndarray), ocp.RestoreArgs()
    kind = ocp.metadata.StringMetadata
    types = jax.tree.map(lambda leaf: text if isinstance(leaf, kind) else array, asked)
    if shardings is not None:
        spread = {n: ocp.ArrayRestoreArgs(sharding=x) for n, x in shardings.items()}
        types = unflatten(types, flatten(types) | spread)
    args = ocp.args.PyTreeRestore(item=asked, restore_args=types, partial_restore=True)
    with _reading(item):
        return ocp.PyTreeCheckpointHandler().restore(item, args=args)


@contextlib.contextmanager
def _reading(item: os.PathLike[str]) -> Iterator[None]:
    advice = "Copy it again or use another step."
    with reading(item, "orbax checkpoint", advice), _without_late_reports():
        yield


@contextlib.contextmanager
def _without_late_reports() -> Iterator[None]:
    """Drop what tensorstore's threads report after orbax has given up.

    When one leaf fails orbax closes its event loop, and each leaf still under way
    then prints a traceback of its own, which would bury the error.
    """
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = report_others
    try:
        yield
    except Exception:  # whatever it is, it goes on
        time.sleep(0.1)  # they come within milliseconds
        raise
    finally:
        sys.unraisablehook = report
