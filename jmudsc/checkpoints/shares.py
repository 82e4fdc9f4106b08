"""Shares: lazy variables that several processes compute, each its share, saved as one.

All of it must be called alike by every process, on a file system that all of them see.
"""

import os
import shutil
from pathlib import Path

import jax
from jaxtyping import PyTree

from jmudsc.checkpoints.dtypes import savable
from jmudsc.checkpoints.filling import (
    begin,
    FILE,
    fill_share,
    filled,
    Filling,
    table_of,
)
from jmudsc.checkpoints.formats import Format, format_of, ORBAX
from jmudsc.checkpoints.provenance import Record
from jmudsc.checkpoints.save import laid_out, save_with_record
from jmudsc.checkpoints.spread import read_spread, save_spread
from jmudsc.lazy import LazyArray
from jmudsc.paths import flatten, unflatten
from jmudsc.processes import in_all, in_first
from jmudsc.sharding import along_longest, mesh_of_all


def save_by_shares(
    path: str | os.PathLike[str],
    variables: PyTree[LazyArray],
    record: Record,
    filling: Filling,
    *,
    overwrite: bool = False,
    kind: Format | None = None,
) -> Path:
    """Compute lazy variables in all processes, each its share, and save them as one.

    What is computed is kept in one file. From there the first process writes files, and
    all together a directory of orbax, each the parts of its devices.

    Args:
        path: as for `save_with_record`.
        variables: lazy arrays, the same in every process.
        record: what to store beside them; that of the first process counts.
        filling: how they are computed, with the same folder and identity in all.
        overwrite: as for `save_with_record`.
        kind: as for `save_with_record`.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        FileExistsError: as `save_with_record` does, in the first process.
        ValueError: as `save_with_record` does, and in all others if it failed in one.
    """
    target, kind = Path(path).expanduser().resolve(), kind or format_of(path)
    tree = laid_out(savable(variables, kind), kind)
    leaves = flatten(tree)
    table = (kind.table or table_of)(leaves)
    number, count = jax.process_index(), jax.process_count()
    in_first(lambda: begin(filling, leaves, table))
    in_all(lambda: fill_share(filling, leaves, table, number, count))
    if kind is not ORBAX:
        save = lambda: save_with_record(
            path, variables, record, overwrite=overwrite, kind=kind, filling=filling
        )
        in_first(save)
        return target
    mesh = mesh_of_all()
    there = unflatten(tree, filled(filling.folder / FILE, leaves, table))
    whole = read_spread(there, lambda _, leaf: along_longest(mesh, leaf.shape))
    save_spread(path, whole, record, overwrite=overwrite)
    in_first(lambda: shutil.rmtree(filling.folder))
    return target
