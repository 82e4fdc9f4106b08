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
from jmudsc.checkpoints.formats import check_ending, format_of, open_file, write_file
from jmudsc.checkpoints.load import records_of
from jmudsc.checkpoints.orbax import open_tree, write_tree
from jmudsc.checkpoints.orbax_layout import find_item
from jmudsc.checkpoints.subtrees import Route, routes_of
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
    arrays = savable(variables, kind or "orbax")
    content = provenance.described(record, variables)
    if kind:
        leaves = _by_route(arrays)
        content["keys"] = _named({keys: keys for keys in leaves})
        beside = Path(records_of(target))
        with (
            building(beside, overwrite=True) as folder,
            building(target, overwrite) as temporary,
        ):
            content["digests"] = _write_file(target, temporary, kind, leaves)
            provenance.write(epath.Path(folder), content, record)
            if overwrite or not target.exists():  # else that of another process
                discard(beside)  # it is of what is about to be replaced
        return target
    with building(target, overwrite) as temporary:
        content["digests"] = _write_tree(target, temporary, arrays)
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
        ValueError: if `path` is a URL or ends as files of other formats do, or several
            processes would save: of several only the first may, and only a file.
    """
    if "://" in os.fspath(path):
        raise ValueError(
            f"{os.fspath(path)}: is a URL, needed a local directory, where a rename is "
            "atomic; save locally and copy the directory."
        )
    check_ending(path)
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
    records = Path(records_of(target))
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
