"""Save: write variables, whole or not at all, and a record of how they were made."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree

from jmudsc.checkpoints import provenance
from jmudsc.checkpoints.atomic import building, discard, remains
from jmudsc.checkpoints.dtypes import savable
from jmudsc.checkpoints.formats import check_ending, Format, format_of
from jmudsc.checkpoints.load import records_of
from jmudsc.checkpoints.subtrees import nested, Route, routes_of
from jmudsc.lazy import LazyArray, parts_of, read_all
from jmudsc.paths import flatten, listed, unflatten


def save_with_record(
    path: str | os.PathLike[str],
    variables: PyTree,
    record: provenance.Record,
    *,
    overwrite: bool = False,
) -> Path:
    """Save variables in the format that the path ends in, with a record.

    The record is in a folder `jmudsc` inside a directory; beside a file, in a folder
    that is called as the file with `.jmudsc` after it.

    If the process dies at any moment, `path` has its old state, absent or what was
    saved there before, or the new one, complete; a file may be without its folder. What
    was written is read back and compared before it is put into place.

    Args:
        path: as for `save_variables`.
        variables: as for `save_variables`.
        record: what to store beside them.
        overwrite: replace what this function saved there before, once the new one is
            complete, or an empty directory. Nothing else is ever replaced.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        FileExistsError: if something is at `path` that may not be replaced.
        ValueError: if the format cannot hold the variables.
    """
    target = check_free(path, overwrite)
    kind = format_of(target)
    arrays = savable(variables, kind)
    content = provenance.described(record, variables)
    if kind.endings:
        content["keys"] = _named({keys: keys for keys in _by_route(arrays)})
        beside = Path(records_of(target))
        with (
            building(beside, overwrite=True) as folder,
            building(target, overwrite) as temporary,
        ):
            content["digests"] = _written(target, temporary, kind, arrays)
            provenance.write(epath.Path(folder), content, record)
            if overwrite or not target.exists():  # else that of another process
                discard(beside)  # it is of what is about to be replaced
        return target
    with building(target, overwrite) as temporary:
        content["digests"] = _written(target, temporary, kind, arrays)
        provenance.write(records_of(epath.Path(temporary)), content, record)
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
    arrays = savable(variables, kind)
    with building(target) as temporary:
        _written(target, temporary, kind, arrays)
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
        ValueError: if `path` is a URL or ends as files of other formats do, or several
            processes would save: of several only the first may, and only a file.
    """
    if "://" in os.fspath(path):
        raise ValueError(
            f"{os.fspath(path)}: expected a local directory, where a rename is atomic, "
            "got a URL. Save locally and copy the directory."
        )
    check_ending(path)
    is_first_with_file = bool(format_of(path).endings) and jax.process_index() == 0
    if jax.process_count() > 1 and not is_first_with_file:
        raise ValueError(
            f"{os.fspath(path)}: expected a single process to save, got one of "
            f"{jax.process_count()}. Gather the variables, and save them there, or in "
            "process 0 as a file, merged.safetensors say."
        )
    target = Path(path).expanduser().resolve()
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target}: expected a free path, got one that exists. Choose another or "
            "pass overwrite=True (--overwrite)."
        )
    records = Path(records_of(target))
    folders = [records, *remains(records)]  # a save was interrupted
    ours = any(provenance.has_record(epath.Path(folder)) for folder in folders)
    is_empty = target.is_dir() and not any(target.iterdir())
    for place in (target, records):
        if place.exists() and not is_empty and not ours:
            raise FileExistsError(
                f"{place}: expected what jmudsc saved, got something else, which "
                "overwrite=True never replaces. Remove it yourself or choose another "
                "path."
            )
    return target


def _by_route(variables: PyTree[LazyArray]) -> dict[Route, LazyArray]:
    """Return leaves by their keys; an NNX variable is its value."""
    last = -1 if provenance.is_nnx_state(variables) else None
    leaves = flatten(variables)
    return {keys[:last]: leaves[path] for path, keys in routes_of(variables).items()}


def _named(leaves: Mapping[Route, Any]) -> dict[str, Any]:
    return {"/".join(map(str, keys)): leaf for keys, leaf in leaves.items()}


def _laid_out(variables: PyTree[LazyArray], kind: Format) -> PyTree[LazyArray]:
    """Return variables as the tree that a format writes."""
    if kind.layout == "tree":
        return variables
    leaves = _by_route(variables)
    if kind.layout == "flat":
        return _named(leaves)
    text = [(tuple(map(str, keys)), leaf) for keys, leaf in leaves.items()]
    return nested("variables", text)


def _written(
    target: Path, temporary: Path, kind: Format, variables: PyTree[LazyArray]
) -> dict[str, str]:
    """Write variables, compare what is read back; return the digests of the leaves."""
    tree = _laid_out(variables, kind)
    leaves, digests = _digested(flatten(tree))
    try:
        kind.write(temporary, unflatten(tree, leaves))
    except OSError as error:
        raise ValueError(
            f"{target}: expected room and the right to write, got an error ({error}). "
            "Make room or choose another path; nothing was left there."
        ) from error
    if wrong := _changed(kind.open(temporary), digests):
        raise ValueError(
            f"{target}: expected to read back what was written, got {len(wrong)} of "
            f"{len(leaves)} leaves changed. Save in another format:\n{listed(wrong)}"
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
