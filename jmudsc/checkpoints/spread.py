"""Spread: variables on the devices of several processes, each with its own parts.

All of it must be called alike by every process.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints import provenance
from jmudsc.checkpoints.atomic import building
from jmudsc.checkpoints.binding import check_replaceable, files_of, records_of
from jmudsc.checkpoints.dtypes import savable
from jmudsc.checkpoints.formats import Format, format_of
from jmudsc.checkpoints.orbax import write_spread
from jmudsc.checkpoints.save import (
    check_free,
    digests_of,
    no_room,
    not_as_written,
    save_with_record,
    told,
    write_card,
)
from jmudsc.lazy import FetchSpread, LazyArray
from jmudsc.paths import flatten, unflatten
from jmudsc.processes import in_all, in_first, told_by_first
from jmudsc.sharding import spread, to_host


def is_spread(variables: PyTree) -> bool:
    """Whether variables are on devices of other processes too."""
    arrays = [x for x in jax.tree.leaves(variables) if isinstance(x, jax.Array)]
    return any(not x.is_fully_addressable for x in arrays)


def read_spread(
    tree: PyTree[LazyArray],
    sharding_for: Callable[[str, LazyArray], jax.sharding.NamedSharding],
) -> PyTree[jax.Array]:
    """Read lazy arrays to the devices of all processes.

    Of an orbax checkpoint every process reads no more than its own parts. What is in
    other files, or has digests, is read whole by every process, one array after the
    other.

    Args:
        tree: the arrays.
        sharding_for: path and array -> how it is to be spread.

    Returns:
        The arrays.
    """
    leaves = flatten(tree)
    by_parts: dict[FetchSpread, dict[str, jax.sharding.Sharding]] = {}
    for path, leaf in leaves.items():
        if leaf.fetch_spread is not None:
            names = by_parts.setdefault(leaf.fetch_spread, {})
            names[leaf.name] = sharding_for(path, leaf)
    found = {fetch: fetch(names) for fetch, names in by_parts.items()}

    def read(path: str, leaf: LazyArray) -> jax.Array:
        if leaf.fetch_spread is not None:
            return found[leaf.fetch_spread][leaf.name]
        return spread(np.asarray(leaf.read()), sharding_for(path, leaf))

    return unflatten(tree, {path: read(path, x) for path, x in leaves.items()})


def save_spread(
    path: str | os.PathLike[str],
    variables: PyTree,
    record: provenance.Record,
    *,
    overwrite: bool = False,
) -> Path:
    """Save variables that are spread over several processes, with one record.

    Every process must call this alike. Orbax writes a directory, each process the parts
    that it has; the first reads all of it back, writes the record and puts it into
    place, which is atomic as for `save_with_record`. A file is written by the first
    alone, for which every process gathers the variables.

    Args:
        path: as for `save_with_record`, on a file system that all processes see.
        variables: arrays, all of them on the devices of all processes.
        record: what to store beside them; that of the first process counts.
        overwrite: as for `save_with_record`.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        FileExistsError: as `save_with_record` does, in the first process.
        ValueError: as `save_with_record` does, and in all others if it failed in one.
    """
    target = Path(path).expanduser().resolve()
    kind = format_of(path)
    if kind.endings:
        whole = jax.tree.map(to_host, variables)
        in_first(lambda: save_with_record(path, whole, record, overwrite=overwrite))
        return target
    with contextlib.ExitStack() as stack:

        def begun() -> str:
            check_free(path, overwrite)
            check = partial(check_replaceable, target, quick=True)
            return str(stack.enter_context(building(target, overwrite, check)))

        temporary = Path(told_by_first(in_first(begun)))
        lazy = savable(variables, kind)
        in_all(lambda: _written_by_all(target, temporary, kind, variables))

        def finished() -> None:
            write_card(temporary, record.card)
            digests = digests_of(kind.open(temporary))
            content = provenance.described(record)
            content |= told(lazy, kind, digests, files_of(temporary))
            provenance.write(records_of(temporary), content, record)
            stack.close()

        in_first(finished)
    return target


def _written_by_all(
    target: Path, temporary: Path, kind: Format, variables: PyTree[jax.Array]
) -> None:
    """Write variables, and compare what is read back of the parts of this process."""
    try:
        write_spread(temporary, variables)
    except OSError as error:
        raise ValueError(no_room(target, error)) from error
    leaves = flatten(variables)
    found = read_spread(kind.open(temporary), lambda path, _: leaves[path].sharding)
    read = flatten(found)
    if wrong := [n for n, leaf in leaves.items() if not _same_parts(leaf, read[n])]:
        raise ValueError(not_as_written(target, wrong, len(leaves)))


def _same_parts(one: jax.Array, other: jax.Array) -> bool:
    """Whether the parts that are here are the same, to the bit."""
    parts = zip(one.addressable_shards, other.addressable_shards, strict=True)
    return one.dtype == other.dtype and all(
        np.asarray(x.data).tobytes() == np.asarray(y.data).tobytes() for x, y in parts
    )
