"""Checkpoints: read what training code writes, write merged ones.

Orbax, safetensors, msgpack and npz are read alike. Reading needs no target: the tree is
taken from what is stored, and every array passes through the host, so a checkpoint
written on other devices loads on whatever devices are here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree

from jmudsc import provenance
from jmudsc.atomic import building, discard, remains
from jmudsc.formats import find_file, FLAT, format_of, open_file, write_file
from jmudsc.host import abstract, lazily_typed, savable, to_jax_types
from jmudsc.journal import digest_of
from jmudsc.layouts import find_item
from jmudsc.lazy import Fetch, LazyArray, parts_of, read_all
from jmudsc.orbax_trees import open_tree, write_tree
from jmudsc.paths import flatten, listed, unflatten
from jmudsc.renaming import Rename, renamed, split
from jmudsc.result import MergeResult
from jmudsc.safetensors_files import INDEX, shards_of
from jmudsc.subtrees import (
    at,
    chosen_routes,
    nested,
    nnx_keys,
    Route,
    routes_of,
    unwrap,
)

# Beside an item, in its directory; beside a file, what is put after its name.
_RECORDS, _RECORDS_OF_FILE = "jmudsc", ".jmudsc"


@dataclass(frozen=True)
class Stored:
    """Variables that are still on disk.

    Attributes:
        where: the checkpoint, for errors.
        kind: its format.
        variables: their arrays, in nested dicts and lists.
    """

    where: str
    kind: str
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
    read. Dtypes are kept. From orbax, tuples and named tuples come back as lists and
    dicts (that is how it stores them), NNX variables as plain arrays, typed PRNG keys
    as their key data; lists in other formats as dicts with the keys "0", "1", and so
    on. If jmudsc wrote the checkpoint, lists are lists, and every leaf loaded is
    compared with the digest saved with it.

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
            subtree or what is to be renamed, or was changed after jmudsc wrote it; or
            if arrays that stay on disk are to be put somewhere.
    """
    if lazy and sharding is not None:
        raise ValueError(
            f"{os.fspath(path)}: sharding was given with lazy=True, needed one of "
            "them, since lazy arrays are on no device; leave sharding out."
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
    return Stored(where, stored.kind, chosen)


def load_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load how a merged checkpoint was made.

    Args:
        path: a checkpoint that `save` wrote.

    Returns:
        `recipe`, `extra`, `history`, `versions` (library -> version), `digests`
        (leaf path -> SHA-256 of its dtype, shape and bytes) and `assignment`
        (label -> int32 array).

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if jmudsc did not write the checkpoint, or its record was changed.
    """
    place = find_file(path) or find_item(path)
    folder = _records(place)
    merge = provenance.read_record(folder)
    if merge is None:
        raise ValueError(
            f"{place}: has no record of a merge, needed a checkpoint that jmudsc "
            "saved; load its arrays with jmudsc.load(path)."
        )
    assignment = provenance.read_assignment(folder, merge["assignment"])
    return {**merge, "assignment": assignment}


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
    place = Path(find_file(path) or find_item(path))
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    files += shards_of(place) if place.name.endswith(INDEX) else []
    # Archives may give all files one time; that of the last change is the system's.
    seen = [
        (str(x), at.st_size, at.st_mtime_ns, at.st_ctime_ns)
        for x, at in ((x, x.stat()) for x in files)
    ]
    return digest_of([repr(seen).encode()])


def save(
    path: str | os.PathLike[str],
    result: MergeResult,
    *,
    extra: Mapping[str, Any] | None = None,
    notes: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Save merged variables so that the training code of the parents restores them.

    `orbax.checkpoint.StandardCheckpointer().restore(path, target)` reads the result
    as it would read a parent. A folder `jmudsc` inside holds what `load_provenance`
    returns. If the path ends in `.safetensors`, `.npz` or `.msgpack`, the result is
    such a file, with names joined by `/`, and the folder is beside it, called as the
    file with `.jmudsc` after it.

    If the process dies at any moment, `path` is either absent or complete. What was
    written is read back and compared before it is put into place.

    Variables that are on disk, as `merge` gives them for models that are, are read and
    merged leaf by leaf while they are written; only a msgpack file is written at once.

    Args:
        path: a directory or file to make, on a local file system; missing parents are
            made.
        result: the merge.
        extra: plain JSON values of your own to store in the record.
        notes: file name -> text, written beside the record for people to read.
        overwrite: replace a checkpoint that jmudsc saved there before, once the new
            one is complete, or an empty directory. Nothing else is ever replaced.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        FileExistsError: if something is at `path` that may not be replaced.
        ValueError: if the format cannot hold the variables, or the record is not JSON.
    """
    target = check_free(path, overwrite)
    kind = format_of(target)
    variables = savable(result.variables, kind or "orbax")
    content = provenance.record(result, extra or {})
    kept = result.assignment, notes or {}
    if kind:
        leaves = _by_route(variables)
        content["keys"] = _named({keys: keys for keys in leaves})
        beside = Path(_records(target))
        with (
            building(beside, overwrite=True) as folder,
            building(target, overwrite) as temporary,
        ):
            content["digests"] = _write_file(target, temporary, kind, leaves)
            provenance.write(epath.Path(folder), content, *kept)
            if overwrite or not target.exists():  # else that of another process
                discard(beside)  # it is of what is about to be replaced
        return target
    with building(target, overwrite) as temporary:
        content["digests"] = _write_tree(target, temporary, variables)
        provenance.write(_records(epath.Path(temporary)), content, *kept)
    return target


def save_variables(path: str | os.PathLike[str], variables: PyTree) -> Path:
    """Save variables as training code would, in the format that the path ends in.

    Args:
        path: a directory, or a file with an ending as for `save`, to make on a local
            file system; missing parents are made.
        variables: the arrays; lazy ones are read one by one.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        FileExistsError: if something is at `path`.
        ValueError: if the format cannot hold the variables.
    """
    target = check_free(path)
    kind = format_of(target)
    arrays = savable(variables, kind or "orbax")
    with building(target) as temporary:
        if kind:
            _write_file(target, temporary, kind, _by_route(arrays))
        else:
            _write_tree(target, temporary, arrays)
    return target


def check_free(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Check that a checkpoint can be saved at a path, before anything is computed.

    Args:
        path: where it is to be.
        overwrite: whether it may replace one that jmudsc saved there.

    Returns:
        The absolute path.

    Raises:
        FileExistsError: if something is at `path` that may not be replaced.
        ValueError: if `path` is a URL, or several processes would save: of several
            only the first may, and only a file.
    """
    if "://" in os.fspath(path):
        raise ValueError(
            f"{os.fspath(path)}: is a URL, needed a local directory, where a rename is "
            "atomic; save locally and copy the directory."
        )
    is_first_with_file = format_of(path) is not None and jax.process_index() == 0
    if jax.process_count() > 1 and not is_first_with_file:
        raise ValueError(
            f"{os.fspath(path)}: this is one of {jax.process_count()} processes, "
            "needed a single one to save; gather the variables, and save them there, "
            "or in process 0 as a file, merged.safetensors say."
        )
    target = Path(path).expanduser().resolve()
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target}: exists, needed a new path; choose another or pass "
            "overwrite=True (--overwrite)."
        )
    records = Path(_records(target))
    folders = [records, *remains(records)]  # a save was interrupted
    ours = any(provenance.has_record(epath.Path(folder)) for folder in folders)
    is_empty = target.is_dir() and not any(target.iterdir())
    for place in (target, records):
        if place.exists() and not is_empty and not ours:
            raise FileExistsError(
                f"{place}: exists and was not saved by jmudsc, which overwrite=True "
                "never replaces; remove it yourself or choose another path."
            )
    return target


# Reading


def _opened(path: str | os.PathLike[str], separator: str | None) -> Stored:
    """Find all that is stored at a path, in the tree that it has by itself."""
    file = find_file(path)
    place = file or find_item(path)
    merge = provenance.read_record(_records(place))
    kind, tree = open_file(file) if file else ("orbax", open_tree(find_item(path)))
    if merge is not None:
        tree = _verified(str(place), tree, merge["digests"])
    keys = merge and merge.get("keys")
    if keys:
        leaves = flatten(tree)
        known = [(tuple(keys[name]), leaves[name]) for name in keys if name in leaves]
        tree = nested(str(place), known)
    if separator is None:
        separator = "/" if kind in FLAT and not keys else ""
    tree = split(str(place), tree, separator)
    if merge is None:
        wrapped = nnx_keys(tree)
    else:
        wrapped = set(tree) if merge["nnx"] and not keys else set()
    return Stored(str(place), kind, unwrap(tree, wrapped))


def _records(place: os.PathLike[str]) -> epath.Path:
    """Return the folder of what is stored beside variables."""
    here = epath.Path(place)
    if format_of(here):
        return here.with_name(here.name + _RECORDS_OF_FILE)
    return here / _RECORDS


def _verified(
    where: str, tree: PyTree[LazyArray], digests: Mapping[str, str]
) -> PyTree[LazyArray]:
    """Have arrays compared with the digests of a merge when they are read."""
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
            f"{where}: {len(wrong)} of {len(expected)} leaves are not what jmudsc "
            f"saved, needed all unchanged; copy the checkpoint again:\n{listed(wrong)}"
        )


# Writing


def _by_route(variables: PyTree[LazyArray]) -> dict[Route, LazyArray]:
    """Return leaves by their keys; an NNX variable is its value."""
    last = -1 if provenance.is_nnx_state(variables) else None
    leaves = flatten(variables)
    return {keys[:last]: leaves[path] for path, keys in routes_of(variables).items()}


def _named(leaves: Mapping[Route, Any]) -> dict[str, Any]:
    return {"/".join(map(str, keys)): leaf for keys, leaf in leaves.items()}


def _write_file(
    target: Path, temporary: Path, kind: str, leaves: Mapping[Route, LazyArray]
) -> dict[str, str]:
    """Write a file, compare what is read back, and return the digests of its leaves."""
    named, digests = _digested(_named(leaves))
    try:
        write_file(temporary, kind, dict(zip(leaves, named.values(), strict=True)))
    except OSError as error:
        raise ValueError(
            f"{target}: could not be written ({error}), needed room and the right to "
            "write; nothing was left there."
        ) from error
    found = _read_back(target, temporary)
    if wrong := _changed(found, digests):
        raise ValueError(
            f"{target}: {len(wrong)} of {len(leaves)} leaves are read back changed, "
            f"needed all as they were; save with orbax:\n{listed(wrong)}"
        )
    return digests


def _read_back(target: Path, temporary: Path) -> PyTree[LazyArray]:
    """Open a file that was written, which fails where a name means something else."""
    try:
        return open_file(temporary)[1]
    except ValueError as error:
        raise ValueError(
            f"{target}: cannot be read back, needed names of leaves that mean nothing "
            f"else in such a file; rename some, or save with orbax:\n  {error}"
        ) from error


def _write_tree(
    target: Path, temporary: Path, variables: PyTree[LazyArray]
) -> dict[str, str]:
    """Write an item, compare what is read back; return the digests of its leaves."""
    leaves, digests = _digested(flatten(variables))
    write_tree(target, temporary, unflatten(variables, leaves))
    if wrong := _changed(open_tree(find_item(temporary)), digests):
        raise ValueError(
            f"variables: orbax gives back {len(wrong)} of {len(digests)} leaves "
            'changed, needed names that differ even where "/" and "." count as one; '
            f"rename:\n{listed(wrong)}"
        )
    return digests


def _digested(
    leaves: Mapping[str, LazyArray],
) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """Have the digest of every leaf put down when it is read to be written."""
    digests: dict[str, str] = dict.fromkeys(leaves, "")

    def digested(name: str, leaf: LazyArray) -> LazyArray:
        def fetch(names: Sequence[str]) -> Mapping[str, Any]:
            array = np.asarray(leaf.read())
            digests[name] = provenance.leaf_digest(array)
            return dict.fromkeys(names, array)

        return replace(leaf, fetch=fetch)

    return {name: digested(name, leaf) for name, leaf in leaves.items()}, digests


def _changed(found: PyTree[LazyArray], digests: Mapping[str, str]) -> list[str]:
    """Return the leaves that are not read back as they were written."""
    seen: dict[str, str] = {}
    for part in parts_of(flatten(found)):
        seen |= {n: provenance.leaf_digest(x) for n, x in read_all(part).items()}
    return provenance.changed(seen, digests)
