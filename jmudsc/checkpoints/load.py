"""Load: read what training code writes, and merged checkpoints.

All formats are read alike. Reading needs no target: the tree is
taken from what is stored, and every array passes through the host, so a checkpoint
written on other devices loads on whatever devices are here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jaxtyping import PyTree

from jmudsc.checkpoints import provenance
from jmudsc.checkpoints.dtypes import abstract, lazily_typed, to_jax_types
from jmudsc.checkpoints.formats import find, Format, format_at, format_of
from jmudsc.checkpoints.renaming import Rename, renamed, split
from jmudsc.checkpoints.subtrees import (
    at,
    chosen_routes,
    nested,
    nnx_keys,
    unwrap,
)
from jmudsc.digests import digest_of
from jmudsc.lazy import Fetch, LazyArray, read_all
from jmudsc.paths import flatten, listed

# Beside an item, in its directory; beside a file, what is put after its name.
_RECORDS, _RECORDS_OF_FILE = "jmudsc", ".jmudsc"


@dataclass(frozen=True)
class Stored:
    """Variables that are still on disk.

    Attributes:
        where: the checkpoint, for errors.
        format: what it is stored in.
        variables: their arrays, in nested dicts and lists.
    """

    where: str
    format: Format
    variables: PyTree[LazyArray]


def load(
    path: str | os.PathLike[str],
    subtree: str | Sequence[str] | None = None,
    *,
    rename: Rename | None = None,
    separator: str | None = None,
    sharding: PyTree[jax.sharding.Sharding] | None = None,
    lazy: bool = False,
) -> PyTree[jax.Array | LazyArray]:
    """Load arrays from a checkpoint without knowing its tree.

    Read are orbax checkpoints, safetensors files (also several with an index), Flax's
    msgpack files and npz files; nothing is unpickled. Only the subtree asked for is
    read. Dtypes are kept; where JAX has no 64-bit types (`jax_enable_x64`) such leaves
    are narrowed if that changes no value, single numbers in any case. From orbax,
    tuples and named tuples come back as lists and dicts (that is how it stores them),
    NNX variables as plain arrays, typed PRNG keys as their key data; lists in other
    formats as dicts with the keys "0", "1", and so on. If jmudsc wrote the checkpoint,
    lists are lists, and every leaf loaded is compared with the digest saved with it.

    Args:
        path: a file, or its directory; for orbax a step of a `CheckpointManager`, an
            item of a step, or what a checkpointer or jmudsc saved. URLs such as `gs://`
            go to `etils.epath`, for orbax only.
        subtree: the part to load, `"params"` or `"model/params"`; several parts give
            a dict with the last word of each as key, so that
            `("params", "batch_stats")` gives linen variables. All, if None.
        rename: pattern of paths below the subtree -> new path, or None to leave leaves
            out. The rules are taken one after the other; `*` stands for any text, the
            same in the new path: `{"encoder/*": "params/*", "*/weight": "*/kernel"}`.
        separator: what to split names at into the keys of nested dicts, nothing (`""`)
            for not at all; None for `"/"` in safetensors and npz files, whose names are
            flat, and for none elsewhere.
        sharding: where to put the leaves: one sharding for all, or a tree of them
            that is a prefix of the result. The default device, if None.
        lazy: leave the arrays on disk, for `merge` to read each when it is needed;
            nothing is put on a device. What only arrays tell is then found later.

    Returns:
        The arrays, in nested dicts and lists.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if what is there is not a whole checkpoint, is several, lacks the
            subtree or what is to be renamed, or was changed after jmudsc wrote it; if
            64-bit leaves would lose digits; or if arrays that stay on disk are to be
            put somewhere.
    """
    if lazy and sharding is not None:
        raise ValueError(
            f"{os.fspath(path)}: expected lazy=True or a sharding, got both. Leave "
            "sharding out: lazy arrays are on no device."
        )
    stored = open_variables(path, subtree, rename=rename, separator=separator)
    if lazy:
        return lazily_typed(stored.where, stored.variables)
    host = to_jax_types(stored.where, read_all(stored.variables))
    return jax.device_put(host, sharding)


def load_shapes(
    path: str | os.PathLike[str],
    subtree: str | Sequence[str] | None = None,
    *,
    rename: Rename | None = None,
    separator: str | None = None,
) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of what `load` would load, without reading it.

    A msgpack file has no table of contents and is read nevertheless.

    Args:
        path: as for `load`.
        subtree: as for `load`.
        rename: as for `load`.
        separator: as for `load`.

    Returns:
        Shapes and dtypes, in nested dicts and lists.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: as `load` does, but for what only the arrays tell.
    """
    stored = open_variables(path, subtree, rename=rename, separator=separator)
    return abstract(stored.where, stored.variables)


def open_variables(
    path: str | os.PathLike[str],
    subtree: str | Sequence[str] | None = None,
    *,
    rename: Rename | None = None,
    separator: str | None = None,
) -> Stored:
    """Find variables on disk, to be read later, all or some.

    Args:
        path: as for `load`.
        subtree: as for `load`.
        rename: as for `load`.
        separator: as for `load`.

    Returns:
        The variables, of which nothing but shapes and dtypes is read.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: as `load` does, but for what only the arrays tell.
    """
    stored = _opened(path, separator)
    where, tree = stored.where, stored.variables
    routes = chosen_routes(where, tree, subtree)
    parts = {name: at(tree, keys) for name, keys in routes.items()}
    several = subtree is not None and not isinstance(subtree, str)
    chosen = parts if several else parts[""]
    if rename:
        chosen = renamed(where, chosen, rename)
    return Stored(where, stored.format, chosen)


def load_record(path: str | os.PathLike[str]) -> tuple[epath.Path, dict[str, Any]]:
    """Read the record of a checkpoint.

    Args:
        path: a checkpoint that was saved with one.

    Returns:
        The folder that it is in, and its JSON values.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if jmudsc did not write the checkpoint, or its record was changed.
    """
    place = find(path)
    folder = records_of(place)
    content = provenance.read_record(folder)
    if content is None:
        raise ValueError(
            f"{place}: expected a checkpoint that jmudsc saved, got one without its "
            "record. Load its arrays with jmudsc.load(path)."
        )
    return folder, content


def fingerprint(path: str | os.PathLike[str]) -> str | None:
    """Return what changes when a checkpoint is written anew, without reading it.

    Args:
        path: as for `load`.

    Returns:
        A digest of the names, sizes and times of its files; None for a URL.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if what is there is not a whole checkpoint, or is several.
    """
    if "://" in os.fspath(path):
        return None
    place = Path(find(path))
    files = [Path(x) for x in format_at(place).files(place)]
    # Archives may give all files one time; that of the last change is the system's.
    seen = [
        (str(x), at.st_size, at.st_mtime_ns, at.st_ctime_ns)
        for x, at in ((x, x.stat()) for x in files)
    ]
    return digest_of([repr(seen).encode()])


def _opened(path: str | os.PathLike[str], separator: str | None) -> Stored:
    """Find all that is stored at a path, in the tree that it has by itself."""
    place = find(path)
    record = provenance.read_record(records_of(place))
    kind = format_at(place)
    tree = kind.open(place)
    if record is not None:
        tree = _verified(str(place), tree, record["digests"])
    keys = record and record.get("keys")
    if keys:
        leaves = flatten(tree)
        known = [(tuple(keys[name]), leaves[name]) for name in keys if name in leaves]
        tree = nested(str(place), known)
    if separator is None:
        separator = "/" if kind.layout == "flat" and not keys else ""
    tree = split(str(place), tree, separator)
    if record is None:
        wrapped = nnx_keys(tree)
    else:
        wrapped = set(tree) if record["nnx"] and not keys else set()
    return Stored(str(place), kind, unwrap(tree, wrapped))


def records_of(place: os.PathLike[str]) -> epath.Path:
    """Return the folder of what is stored beside variables.

    Args:
        place: the checkpoint.
    """
    here = epath.Path(place)
    if format_of(here).endings:
        return here.with_name(here.name + _RECORDS_OF_FILE)
    return here / _RECORDS


def _verified(
    where: str, tree: PyTree[LazyArray], digests: Mapping[str, str]
) -> PyTree[LazyArray]:
    """Have arrays compared with the digests of a record when they are read."""
    leaves = flatten(tree)
    checked: dict[Fetch, Fetch] = {}

    def checking(fetch: Fetch) -> Fetch:
        def read(names: Sequence[str]) -> Mapping[str, Any]:
            found = fetch(names)
            _check_unchanged(where, leaves, found, digests)
            return found

        return checked.setdefault(fetch, read)

    return jax.tree.map(lambda leaf: replace(leaf, fetch=checking(leaf.fetch)), tree)


def _check_unchanged(
    where: str,
    leaves: Mapping[str, Any],
    found: Mapping[str, Any],
    digests: Mapping[str, str],
) -> None:
    seen = {name: provenance.leaf_digest(leaf) for name, leaf in found.items()}
    unread = leaves.keys() - found.keys()
    expected = {name: x for name, x in digests.items() if name not in unread}
    if wrong := provenance.changed(seen, expected):
        raise ValueError(
            f"{where}: expected all leaves as jmudsc saved them, got {len(wrong)} of "
            f"{len(expected)} changed. Copy the checkpoint again:\n{listed(wrong)}"
        )
