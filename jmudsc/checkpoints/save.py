"""Save: write variables, whole or not at all, and a record of how they were made."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree

from jmudsc.checkpoints import provenance
from jmudsc.checkpoints.atomic import at_rest, building, building_both
from jmudsc.checkpoints.binding import check_replaceable, files_of, records_of
from jmudsc.checkpoints.dtypes import savable
from jmudsc.checkpoints.filling import fill, filled, Filling, table_of
from jmudsc.checkpoints.formats import check_ending, Format, format_of, ORBAX
from jmudsc.checkpoints.publishing import publish
from jmudsc.checkpoints.structure import routes_of, structure_of
from jmudsc.checkpoints.subtrees import nested
from jmudsc.checkpoints.urls import (
    AnyPath,
    copied,
    file_system,
    is_url,
    named_by_urls,
    reached,
)
from jmudsc.lazy import LazyArray, parts_of, read_all
from jmudsc.paths import flatten, listed, unflatten

_DIGESTED = 4  # how many leaves are digested at once


def save_with_record(
    path: str | os.PathLike[str],
    variables: PyTree,
    record: provenance.Record,
    *,
    overwrite: bool = False,
    kind: Format | None = None,
    filling: Filling | None = None,
) -> AnyPath:
    """Save variables in the format that the path ends in, with a record.

    What is saved at a URL is built locally and then put there, see `publishing`.

    The record is in a folder `jmudsc` inside a directory; beside a file, in a folder
    that is called as the file with `.jmudsc` after it.

    If the process dies at any moment, `path` has its old state, absent or what was
    saved there before, or the new one, complete, and its record is found. What was
    written is read back and compared before it is put into place.

    Args:
        path: as for `save_variables`.
        variables: as for `save_variables`.
        record: what to store beside them.
        overwrite: replace what this function saved there before, once the new one is
            complete, or an empty directory. Nothing else is ever replaced: what its
            record does not name, or is not as it was saved, is an error.
        kind: the format of a directory, if not that of orbax.
        filling: how lazy arrays are computed side by side, and kept until all are
            there; None to read one after the other.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        FileExistsError: if something is at `path` that may not be replaced.
        ValueError: if the format cannot hold the variables.
    """
    _check_alone(path, kind or format_of(path))
    target = check_free(path, overwrite)
    if isinstance(target, epath.Path):
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / target.name
            save_with_record(built, variables, record, kind=kind, filling=filling)
            publish(built, target, overwrite)
        return target
    kind = kind or format_of(target)
    content = provenance.described(record)
    check = partial(check_replaceable, target, quick=True)
    if not kind.endings:
        with building(target, overwrite, check) as temporary:
            card = record.card
            content |= _written(target, temporary, kind, variables, filling, card)
            provenance.write(records_of(temporary), content, record)
        return target
    beside = Path(records_of(target))
    if record.card is not None:
        notes = {**record.notes, provenance.CARD: record.card}
        record = replace(record, notes=notes)
    with building_both(target, beside, overwrite, check) as (temporary, folder):
        content |= _written(target, temporary, kind, variables, filling)
        provenance.write(epath.Path(folder), content, record)
    return target


def save_variables(path: str | os.PathLike[str], variables: PyTree) -> AnyPath:
    """Save variables as training code would, in the format that the path ends in.

    Args:
        path: a directory, or a file with an ending as for `save`, or a URL of one;
            missing parents are made.
        variables: the arrays; lazy ones are read one by one.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        FileExistsError: if something is at `path`.
        ValueError: if the format cannot hold the variables.
    """
    _check_alone(path, format_of(path))
    target = check_free(path)
    if isinstance(target, epath.Path):
        with tempfile.TemporaryDirectory() as folder:
            built = save_variables(Path(folder) / target.name, variables)
            publish(Path(built), target, overwrite=False)
        return target
    with building(target) as temporary:
        _written(target, temporary, format_of(target), variables)
    return target


def _check_alone(path: str | os.PathLike[str], kind: Format) -> None:
    """Check that orbax, which waits for all processes, is not called in one of them."""
    is_first = jax.process_index() == 0
    if jax.process_count() > 1 and (kind is ORBAX or not is_first):
        raise ValueError(
            f"{os.fspath(path)}: expected variables that are spread over all "
            f"{jax.process_count()} processes, got some that this one holds alone. "
            "Spread them, or save them in process 0 as a file, merged.safetensors say."
        )


def check_free(path: str | os.PathLike[str], overwrite: bool = False) -> AnyPath:
    """Check that a checkpoint can be saved at a path, before anything is computed.

    Args:
        path: where it is to be.
        overwrite: whether it may replace one that jmudsc saved there.

    Returns:
        The absolute path.

    Raises:
        FileExistsError: if something is at `path` that may not be replaced.
        ValueError: if `path` ends as files of other formats do, or the file system of
            a URL cannot be reached.
    """
    check_ending(path)
    if is_url(path):
        return _check_free_url(os.fspath(path), overwrite)
    target = Path(path).expanduser().resolve()
    if target.exists() and not overwrite:
        raise FileExistsError(_not_free(target))
    if target.parent.is_dir():
        with at_rest(target.parent):
            check_replaceable(target)
    return target


def _check_free_url(url: str, overwrite: bool) -> epath.Path:
    """Check the same at a URL; what is there is copied here to be looked at."""
    target = reached(url)
    system, at = file_system(url)
    if not system.exists(at):
        return target
    if not overwrite:
        raise FileExistsError(_not_free(target))
    with named_by_urls():
        check_replaceable(copied(url, lambda here: here))
    return target


def _not_free(target: AnyPath) -> str:
    return (
        f"{target}: expected a free path, got one that exists. Choose another or "
        "pass overwrite=True (--overwrite)."
    )


def stored_names(variables: PyTree, kind: Format) -> dict[str, str]:
    """Return path of every leaf -> the name that it is stored under.

    Args:
        variables: the tree.
        kind: the format that it is stored in.
    """
    if kind.layout == "tree":
        return {path: path for path in flatten(variables)}
    routes = routes_of(variables)
    return {path: kind.joint.join(map(str, keys)) for path, keys in routes.items()}


def laid_out(variables: PyTree[LazyArray], kind: Format) -> PyTree[LazyArray]:
    """Return variables as the tree that a format writes.

    Args:
        variables: from `savable`.
        kind: the format.
    """
    if kind.layout == "tree":
        return variables
    leaves, names = flatten(variables), stored_names(variables, kind)
    if kind.layout == "flat":
        return {names[path]: leaf for path, leaf in leaves.items()}
    routes = routes_of(variables)
    text = [(tuple(map(str, routes[path])), leaf) for path, leaf in leaves.items()]
    return nested("variables", text)


def _written(
    target: Path,
    temporary: Path,
    kind: Format,
    variables: PyTree,
    filling: Filling | None = None,
    card: str | None = None,
) -> dict[str, Any]:
    """Write variables, compare what is read back; return what a record says of them."""
    lazy = savable(variables, kind)
    tree = laid_out(lazy, kind)
    try:
        if filling is None:
            leaves, digests = _digested(flatten(tree))
            kind.write(temporary, unflatten(tree, leaves))
        else:
            digests = _filled(temporary, kind, tree, filling)
        write_card(temporary, card)
    except OSError as error:
        raise ValueError(no_room(target, error)) from error
    with ThreadPoolExecutor(1) as pool:
        files = pool.submit(files_of, temporary)
        if wrong := _changed(kind.open(temporary), digests):
            raise ValueError(not_as_written(target, wrong, len(digests)))
        return told(lazy, kind, digests, files.result())


def write_card(directory: Path, card: str | None) -> None:
    """Write the card of a checkpoint at the top of its directory.

    Args:
        directory: that of the checkpoint, written.
        card: the text; None for none.
    """
    if card is not None:
        (directory / provenance.CARD).write_text(card)


def no_room(target: Path, error: OSError) -> str:
    """Say that a checkpoint could not be written."""
    return (
        f"{target}: expected room and the right to write, got an error ({error}). "
        "Make room or choose another path; nothing was left there."
    )


def not_as_written(target: Path, wrong: Sequence[str], count: int) -> str:
    """Say which of how many leaves are not read back as they were written."""
    return (
        f"{target}: expected to read back what was written, got {len(wrong)} of "
        f"{count} leaves changed. Save in another format:\n{listed(wrong)}"
    )


def told(
    variables: PyTree[LazyArray],
    kind: Format,
    digests: Mapping[str, str],
    files: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a record says of variables that were written."""
    structure = structure_of(variables, stored_names(variables, kind))
    return {"structure": structure, "digests": dict(digests), "files": dict(files)}


def _filled(
    temporary: Path, kind: Format, tree: PyTree[LazyArray], filling: Filling
) -> dict[str, str]:
    """Compute all arrays side by side, put them into place, and return their digests.

    They are kept in a file of their own, which becomes that of the format if that is
    one with a table; else it is copied from there.
    """
    leaves = flatten(tree)
    table = (kind.table or table_of)(leaves)
    file, digests = fill(filling, leaves, table)
    if kind.table:
        os.link(file, temporary)  # until all is in place the other name is there too
    else:
        kind.write(temporary, unflatten(tree, filled(file, leaves, table)))
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
    return provenance.changed(digests_of(found), digests)


def digests_of(found: PyTree[LazyArray]) -> dict[str, str]:
    """Return the digest of every leaf, read part by part."""
    seen: dict[str, str] = {}
    with ThreadPoolExecutor(_DIGESTED) as pool:
        for part in parts_of(flatten(found)):
            read = read_all(part)
            digests = pool.map(provenance.leaf_digest, read.values())
            seen |= zip(read, digests, strict=True)
    return seen
