"""Orbax trees: read the leaves of an item, all or some, and write one."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree

from jmudsc.checkpoints.steady import steady
from jmudsc.checkpoints.subtrees import prune, Route, route
from jmudsc.lazy import in_memory, LazyArray, parts_of, read_all
from jmudsc.paths import flatten, unflatten


def open_tree(item: epath.Path) -> PyTree[LazyArray]:
    """Return the leaves of an item by what its metadata say.

    The oldest checkpoints have none, or not of all leaves: these are read.

    Args:
        item: from `find_item`.

    Returns:
        Nested dicts and lists, as they are stored.

    Raises:
        ValueError: if the item is damaged.
    """
    import orbax.checkpoint as ocp

    with _orbax_reading(item):
        if not (item / "_METADATA").exists():
            return in_memory(ocp.PyTreeCheckpointHandler().restore(item))
        metadata: Any = ocp.PyTreeCheckpointHandler().metadata(item)
    structure = metadata.tree
    if (item / "checkpoint").exists():  # orbax 0.4 put some leaves, or all, into it
        return in_memory(_read(item, structure, [()]))

    def fetch(names: Sequence[str]) -> Mapping[str, Any]:
        routes = [route(str(item), structure, name) for name in names]
        return flatten(_read(item, structure, routes))

    read = fetch
    if "://" not in os.fspath(item):
        read = steady(str(item), Path(item / "_METADATA"), fetch)
    lazy = {}
    for name, leaf in flatten(structure).items():
        text = isinstance(leaf, ocp.metadata.StringMetadata)
        dtype = np.dtype("U" if text else leaf.dtype)
        lazy[name] = LazyArray(name, () if text else tuple(leaf.shape), dtype, read)
    return unflatten(structure, lazy)


def write_tree(target: Path, temporary: Path, variables: PyTree[LazyArray]) -> None:
    """Write variables as one item, each read when it is its turn.

    Args:
        target: where they are meant to be in the end, named in the error.
        temporary: the directory to make.
        variables: the arrays.

    Raises:
        ValueError: if orbax cannot write them.
    """
    import orbax.checkpoint as ocp

    failed: list[Exception] = []
    types = _lazy_types(failed)
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
    try:
        with _without_late_reports(), ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(temporary, args=ocp.args.PyTreeSave(variables))
    except Exception as error:  # orbax and tensorstore have errors of many kinds
        if failed:
            raise failed[0] from None
        raise ValueError(
            f"{target}: orbax could not write it ({_first_line(error)}), needed room "
            "and the right to write; nothing was left there."
        ) from error


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

    return type_handlers.create_type_handler_registry(
        # Without one for jax.Array orbax warns that it keeps no shardings of them.
        (jax.Array, type_handlers.ArrayHandler()),
        (LazyArray, LazyHandler(deepcopy_host_arrays=False)),
    )


def _read(item: epath.Path, structure: PyTree, routes: list[Route]) -> PyTree:
    """Read the leaves under `routes` to the host, in a tree cut down to those."""
    import orbax.checkpoint as ocp

    asked = prune(structure, routes)
    if not jax.tree.leaves(asked):
        return asked
    # With a type for every leaf orbax asks for no sharding, so it does not matter on
    # which devices the arrays were.
    array, text = ocp.RestoreArgs(restore_type=np.ndarray), ocp.RestoreArgs()
    kind = ocp.metadata.StringMetadata
    types = jax.tree.map(lambda leaf: text if isinstance(leaf, kind) else array, asked)
    args = ocp.args.PyTreeRestore(item=asked, restore_args=types, partial_restore=True)
    with _orbax_reading(item):
        return ocp.PyTreeCheckpointHandler().restore(item, args=args)


@contextlib.contextmanager
def _orbax_reading(item: os.PathLike[str]) -> Iterator[None]:
    """Turn whatever orbax raises on a damaged checkpoint into one sentence."""
    try:
        with _without_late_reports():
            yield
    except Exception as error:  # of many kinds, as above
        raise ValueError(
            f"{item}: cannot be read ({_first_line(error)}), needed a whole orbax "
            "checkpoint; copy it again or use another step."
        ) from error


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


def _first_line(error: Exception) -> str:
    """Shorten an error of orbax, which may be 2 kB, to what says what happened."""
    line = str(error).strip().split("\n")[0]
    line = re.split(r" \[(?:tensorstore_spec|source locations)=", line)[0][:200]
    return line if type(error) is ValueError else f"{type(error).__name__}: {line}"
