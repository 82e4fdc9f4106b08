"""Orbax checkpoints: read any that a Flax training loop writes, write merged ones.

Reading needs no target: the tree is taken from the checkpoint's own metadata, and
every array passes through the host, so a checkpoint written on other devices loads
on whatever devices are here.
"""

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

from jmudsc import provenance
from jmudsc.atomic import building
from jmudsc.host import to_host, to_jax_types
from jmudsc.layouts import find_item
from jmudsc.paths import flatten, listed
from jmudsc.result import MergeResult
from jmudsc.subtrees import at, nnx_keys, prune, Route, route, unwrap


def load(
    path: str | os.PathLike[str],
    subtree: str | Sequence[str] | None = None,
    *,
    sharding: PyTree[jax.sharding.Sharding] | None = None,
) -> PyTree[jax.Array]:
    """Load arrays from an orbax checkpoint without knowing its tree.

    Only the subtree asked for is read. Dtypes are kept. Tuples and named tuples come
    back as lists and dicts (that is how orbax stores them), NNX variables as plain
    arrays, typed PRNG keys as their key data. If jmudsc wrote the checkpoint, every
    leaf loaded is compared with the digest saved with it.

    Args:
        path: a checkpoint: a step of a `CheckpointManager`, an item of a step, or
            what a checkpointer or jmudsc saved. URLs such as `gs://` go to
            `etils.epath`.
        subtree: the part to load, `"params"` or `"model/params"`; several parts give
            a dict with the last word of each as key, so that
            `("params", "batch_stats")` gives linen variables. All, if None.
        sharding: where to put the leaves: one sharding for all, or a tree of them
            that is a prefix of the result. The default device, if None.

    Returns:
        The arrays, in nested dicts and lists.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if what is there is not a whole checkpoint, is several, lacks the
            subtree, or was changed after jmudsc wrote it.
    """
    item = find_item(path)
    merge = provenance.read_record(item)
    structure = _read_structure(item)
    if merge is None:
        wrapped = nnx_keys(structure)
    else:
        wrapped = set(structure) if merge["nnx"] else set()
    routes = _routes(str(item), unwrap(structure, wrapped), subtree)
    host = _read(item, structure, list(routes.values()))
    if merge is not None:
        _check_unchanged(item, structure, host, merge["digests"])
    parts = {k: at(unwrap(host, wrapped), keys) for k, keys in routes.items()}
    chosen = parts if _is_several(subtree) else parts[""]
    return jax.device_put(to_jax_types(str(item), chosen), sharding)


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
    item = find_item(path)
    merge = provenance.read_record(item)
    if merge is None:
        raise ValueError(
            f"{item}: has no record of a merge, needed a checkpoint that jmudsc saved; "
            "load its arrays with jmudsc.load(path)."
        )
    assignment = provenance.read_assignment(item, merge["assignment"])
    return {**merge, "assignment": assignment}


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
    returns. If the process dies at any moment, `path` is either absent or complete.
    What was written is read back and compared before it is put into place.

    Args:
        path: a directory to make, on a local file system; missing parents are made.
        result: the merge.
        extra: plain JSON values of your own to store in the record.
        notes: file name -> text, written beside the record for people to read.
        overwrite: replace a checkpoint that jmudsc saved there before, once the new
            one is complete, or an empty directory. Nothing else is ever replaced.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        FileExistsError: if something is at `path` that may not be replaced.
        ValueError: if orbax cannot hold the variables, or the record is not JSON.
    """
    target = check_free(path, overwrite)
    variables = to_host(result.variables)
    content = provenance.record(result, variables, extra or {})
    with building(target, overwrite) as temporary:
        _write(target, temporary, variables)
        provenance.write(temporary, content, result.assignment, notes or {})
        _check_read_back(temporary, content["digests"])
    return target


def save_variables(path: str | os.PathLike[str], variables: PyTree) -> Path:
    """Save variables as training code would, as a plain orbax checkpoint.

    Args:
        path: a directory to make, on a local file system; missing parents are made.
        variables: the arrays.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        FileExistsError: if something is at `path`.
        ValueError: if orbax cannot hold the variables.
    """
    target = check_free(path)
    host = to_host(variables)
    with building(target) as temporary:
        _write(target, temporary, host)
        _check_read_back(temporary, provenance.tree_digests(host))
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
        ValueError: if `path` is a URL, or several processes would save.
    """
    if "://" in os.fspath(path):
        raise ValueError(
            f"{os.fspath(path)}: is a URL, needed a local directory, where a rename is "
            "atomic; save locally and copy the directory."
        )
    if jax.process_count() > 1:
        raise ValueError(
            f"{os.fspath(path)}: this is one of {jax.process_count()} processes, "
            "needed a single one to save; gather the variables and save them there."
        )
    target = Path(path).expanduser().resolve()
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target}: exists, needed a new path; choose another or pass "
            "overwrite=True (--overwrite)."
        )
    is_empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not is_empty and not provenance.has_record(target):
        raise FileExistsError(
            f"{target}: exists and was not saved by jmudsc, which overwrite=True never "
            "replaces; remove it yourself or choose another path."
        )
    return target


# Reading


def _is_several(subtree: str | Sequence[str] | None) -> bool:
    return subtree is not None and not isinstance(subtree, str)


def _routes(
    where: str, tree: PyTree, subtree: str | Sequence[str] | None
) -> dict[str, Route]:
    """Return the keys to each part asked for, by the name it will have."""
    if subtree is None:
        return {"": ()}
    if isinstance(subtree, str):
        return {"": route(where, tree, subtree)}
    routes = [route(where, tree, name) for name in subtree]
    named = {str(keys[-1]) if keys else "": keys for keys in routes}
    if len(named) < len(routes):
        raise ValueError(
            f"subtree: of {list(subtree)} two end in the same word, needed distinct "
            "ones to name the parts by; load them one at a time."
        )
    return named


def _read_structure(item: epath.Path) -> PyTree:
    """Return the tree of an item with metadata for leaves.

    The oldest checkpoints have no metadata: then the leaves are the arrays themselves.
    """
    import orbax.checkpoint as ocp

    with _orbax_reading(item):
        if not (item / "_METADATA").exists():
            return ocp.PyTreeCheckpointHandler().restore(item)
        metadata: Any = ocp.PyTreeCheckpointHandler().metadata(item)
        return metadata.tree


def _read(item: epath.Path, structure: PyTree, routes: list[Route]) -> PyTree:
    """Read the leaves under `routes` to the host, in a tree cut down to those."""
    import orbax.checkpoint as ocp

    # Orbax 0.4 put some leaves, or all, into one file, which is read whole.
    asked = structure if (item / "checkpoint").exists() else prune(structure, routes)
    if not jax.tree.leaves(asked) or not (item / "_METADATA").exists():
        return prune(asked, routes)
    # With a type for every leaf orbax asks for no sharding, so it does not matter on
    # which devices the arrays were.
    array, text = ocp.RestoreArgs(restore_type=np.ndarray), ocp.RestoreArgs()
    kind = ocp.metadata.StringMetadata
    types = jax.tree.map(lambda leaf: text if isinstance(leaf, kind) else array, asked)
    args = ocp.args.PyTreeRestore(item=asked, restore_args=types, partial_restore=True)
    with _orbax_reading(item):
        return prune(ocp.PyTreeCheckpointHandler().restore(item, args=args), routes)


@contextlib.contextmanager
def _orbax_reading(item: os.PathLike[str]) -> Iterator[None]:
    """Turn whatever orbax raises on a damaged checkpoint into one sentence."""
    try:
        with _without_late_reports():
            yield
    except Exception as error:
        raise ValueError(
            f"{item}: cannot be read ({_first_line(error)}), needed a whole orbax "
            "checkpoint; copy it again or use another step."
        ) from error


@contextlib.contextmanager
def _without_late_reports() -> Iterator[None]:
    """Drop what tensorstore's threads report after orbax has given up on a read.

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
    except Exception:
        time.sleep(0.1)  # they come within milliseconds
        raise
    finally:
        sys.unraisablehook = report


def _first_line(error: Exception) -> str:
    """Shorten an error of orbax, which may be 2 kB, to what says what happened."""
    line = str(error).strip().split("\n")[0]
    line = re.split(r" \[(?:tensorstore_spec|source locations)=", line)[0][:200]
    return line if type(error) is ValueError else f"{type(error).__name__}: {line}"


def _check_unchanged(
    item: epath.Path, structure: PyTree, host: PyTree, digests: Mapping[str, str]
) -> None:
    found = provenance.tree_digests(host)
    unread = flatten(structure).keys() - found.keys()
    expected = {path: x for path, x in digests.items() if path not in unread}
    if wrong := provenance.changed(found, expected):
        raise ValueError(
            f"{item}: {len(wrong)} of {len(expected)} leaves are not what jmudsc "
            f"saved, needed all unchanged; copy the checkpoint again:\n{listed(wrong)}"
        )


# Writing


def _write(target: Path, temporary: Path, variables: PyTree) -> None:
    import orbax.checkpoint as ocp

    # Not ocp.StandardCheckpointer: if it cannot make the directory, its threads keep
    # the process from ending for five minutes.
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    try:
        with checkpointer:
            checkpointer.save(temporary, args=ocp.args.StandardSave(variables))
    except Exception as error:
        raise ValueError(
            f"{target}: orbax could not write it ({_first_line(error)}), needed room "
            "and the right to write; nothing was left there."
        ) from error


def _check_read_back(temporary: Path, digests: Mapping[str, str]) -> None:
    item = find_item(temporary)
    structure = _read_structure(item)
    found = provenance.tree_digests(_read(item, structure, [()]))
    if wrong := provenance.changed(found, digests):
        raise ValueError(
            f"variables: orbax gives back {len(wrong)} of {len(digests)} leaves "
            'changed, needed names that differ even where "/" and "." count as one; '
            f"rename:\n{listed(wrong)}"
        )
