"""Load: read what training code writes, and merged checkpoints.

All formats are read alike. Reading needs no target: the tree is taken from what is
stored, and every array passes through the host, so a checkpoint written on other
devices loads on whatever devices are here.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
from jaxtyping import PyTree

from jmudsc.checkpoints.atomic import at_rest
from jmudsc.checkpoints.binding import (
    Bound,
    find_record,
    rewritten,
    stamps,
)
from jmudsc.checkpoints.dtypes import abstract, lazily_typed, to_jax_types
from jmudsc.checkpoints.formats import files_at, find, Format, format_at, format_of
from jmudsc.checkpoints.like import like_tree
from jmudsc.checkpoints.renaming import Rename, renamed, split
from jmudsc.checkpoints.structure import Route, routes_of, Variable
from jmudsc.checkpoints.subtrees import (
    at,
    chosen_routes,
    nnx_keys,
    unwrap,
)
from jmudsc.checkpoints.urls import is_url, named_by_urls
from jmudsc.checkpoints.verify import check_files, recorded
from jmudsc.digests import digest_of
from jmudsc.lazy import LazyArray, read_all
from jmudsc.paths import flatten, unflatten

Value = TypeVar("Value")

# How often something is read anew that was replaced while it was read, before those
# who replace it have to wait.
_TRIES = 3


@dataclass(frozen=True)
class Stored:
    """Variables that are still on disk.

    Attributes:
        where: the checkpoint, for errors.
        format: what it is stored in.
        variables: their arrays, in nested dicts and lists.
        record: what jmudsc stored with them; None if it did not write them.
        variables_of_nnx: the arrays that are stored as variables of NNX.
    """

    where: str
    format: Format
    variables: PyTree[LazyArray]
    record: Bound | None
    variables_of_nnx: frozenset[LazyArray] = frozenset()


def load(
    path: str | os.PathLike[str],
    subtree: str | Sequence[str] | None = None,
    *,
    rename: Rename | None = None,
    separator: str | None = None,
    sharding: PyTree[jax.sharding.Sharding] | None = None,
    lazy: bool = False,
    like: PyTree | None = None,
) -> PyTree:
    """Load arrays from a checkpoint without knowing its tree.

    Read are orbax checkpoints, safetensors files (also several with an index), Flax's
    msgpack files and npz files; nothing is unpickled. Only the subtree asked for is
    read. Dtypes are kept; where JAX has no 64-bit types (`jax_enable_x64`) such leaves
    are narrowed if that changes no value, single numbers in any case.

    What the files do not tell has to be given by `like`: from orbax, tuples and named
    tuples come back as lists and dicts (that is how it stores them), NNX variables as
    plain arrays, typed PRNG keys as their key data; lists in other formats as dicts
    with the keys "0", "1", and so on. If `jmudsc.save` wrote the checkpoint, lists,
    tuples, None, empty dicts and numbers as keys come back as they were, and every leaf
    loaded is compared with the digest saved with it, all files if the whole is loaded.

    Args:
        path: a file, or its directory; for orbax a step of a `CheckpointManager`, an
            item of a step, or what a checkpointer or jmudsc saved. Or a URL of any of
            these (`gs://`, `s3://`, `az://`, `hf://`, with the package of its file
            system installed): orbax reads `gs://` itself, all else is copied to a
            temporary folder and read there.
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
        like: a tree to give the arrays the structure of: arrays or
            `jax.ShapeDtypeStruct`s in containers of any kind (`nnx.State`s, lists,
            dataclasses), with the leaves, shapes and dtypes of what is loaded.

    Returns:
        The arrays, in nested dicts and lists, or in the structure of `like`.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if what is there is not a whole checkpoint, is several, lacks the
            subtree or what is to be renamed, or was changed after jmudsc wrote it; if
            64-bit leaves would lose digits; if arrays that stay on disk are to be put
            somewhere; or listing all in which it differs from `like`.
    """
    if lazy and sharding is not None:
        raise ValueError(
            f"{os.fspath(path)}: expected lazy=True or a sharding, got both. Leave "
            "sharding out: lazy arrays are on no device."
        )

    def read() -> PyTree[Any]:
        stored = _chosen(_opened(path, separator), subtree, rename)
        if lazy:
            tree = lazily_typed(stored.where, stored.variables)
        else:
            tree = to_jax_types(stored.where, read_all(stored.variables))
        if not lazy and subtree is None and stored.record is not None:
            check_files(find(path), stored.record.content, rewritten)
        return tree if like is None else like_tree(stored.where, tree, like)

    found = _settled(path, read)
    if lazy:
        return found
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        # What is no array is a leaf of `like` that was taken as it is.
        put = partial(jax.device_put, device=sharding)
        return jax.tree.map(lambda x: put(x) if hasattr(x, "dtype") else x, found)
    return jax.device_put(found, sharding)


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
    return _settled(path, lambda: _chosen(_opened(path, separator), subtree, rename))


def _chosen(
    stored: Stored, subtree: str | Sequence[str] | None, rename: Rename | None
) -> Stored:
    where, tree = stored.where, stored.variables
    routes = chosen_routes(where, tree, subtree)
    parts = {name: at(tree, keys) for name, keys in routes.items()}
    several = subtree is not None and not isinstance(subtree, str)
    chosen = parts if several else parts[""]
    if rename:
        chosen = renamed(where, chosen, rename)
    return replace(stored, variables=chosen)


def _settled(path: str | os.PathLike[str], read: Callable[[], Value]) -> Value:
    """Read something, again if what is at the path was replaced meanwhile."""
    if is_url(path):
        with named_by_urls():
            return read()
    for _ in range(_TRIES):
        before = stamps(path)
        try:
            found = read()
        except (ValueError, OSError):
            if stamps(path) == before:
                raise
            continue
        if stamps(path) == before:
            return found
    with at_rest(Path(find(path)).resolve().parent):
        return read()


def load_record(path: str | os.PathLike[str]) -> Bound:
    """Read the record of a checkpoint.

    Args:
        path: a checkpoint that was saved with one.

    Returns:
        Its JSON values, and the folder that it is in.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if jmudsc did not write the checkpoint, or its record was changed.
    """
    bound = _settled(path, lambda: find_record(find(path)))
    if bound is None:
        where = path if is_url(path) else find(path)
        raise ValueError(
            f"{where}: expected a checkpoint that jmudsc saved, got one without its "
            "record. Load its arrays with jmudsc.load(path)."
        )
    return bound


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
    if is_url(path):
        return None
    return fingerprint_of(files_at(path)[1])


def fingerprint_of(files: Iterable[Path]) -> str:
    """Return what changes when one of some files is written anew.

    Args:
        files: that are there.
    """
    # Archives may give all files one time; that of the last change is the system's.
    seen = [
        (str(x), at.st_size, at.st_mtime_ns, at.st_ctime_ns)
        for x, at in ((x, x.stat()) for x in files)
    ]
    return digest_of([repr(seen).encode()])


def _opened(path: str | os.PathLike[str], separator: str | None) -> Stored:
    """Find all that is stored at a path, in the tree that it has by itself."""
    place = find(path)
    bound, kind = find_record(place), format_at(place)
    tree = kind.open(place)
    if bound is None:
        if separator is None:
            separator = "/" if kind.layout == "flat" else ""
        tree = split(str(place), tree, separator)
        keys = nnx_keys(tree)
        parts = [tree[key] for key in keys] if keys else []
        wrapped = frozenset(jax.tree.leaves(parts))
        return Stored(str(place), kind, unwrap(tree, keys), None, wrapped)
    tree = recorded(place, tree, bound.content)
    names = {_text(keys): path for path, keys in routes_of(tree).items()}
    leaves = flatten(tree)
    wrapped = frozenset(x for x in leaves.values() if _is_value(x.name, names))
    tree = split(str(place), tree, separator or "")
    return Stored(str(place), kind, tree, bound, wrapped)


def stored_as(
    stored: Stored, variables: PyTree, path: str | os.PathLike[str]
) -> PyTree:
    """Return variables such that they are stored as those of another checkpoint are.

    A training loop then restores them as it would those. Where these are variables of
    NNX, orbax has a level more; other formats have not.

    Args:
        stored: the other checkpoint, as it was opened for what became of it.
        variables: with leaves of the same paths.
        path: where they are to be saved.

    Returns:
        The variables, to be saved.
    """
    if format_of(path).layout != "tree":
        return variables
    wrapped = {
        x
        for x, leaf in flatten(stored.variables).items()
        if leaf in stored.variables_of_nnx
    }
    leaves = flatten(variables)
    return unflatten(
        variables,
        {x: Variable(leaf) if x in wrapped else leaf for x, leaf in leaves.items()},
    )


def _is_value(name: str, names: Mapping[str, str]) -> bool:
    """Whether a stored name is that of an array with the name of the variable in it."""
    return name not in names and name.removesuffix("/value") in names


def _text(keys: Route) -> str:
    return "/".join(map(str, keys))
