"""Save result: a merge on its way to disk, and how it was made on its way back."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jmudsc.checkpoints.formats import (
    ending_of,
    Format,
    HUGGING_FACE,
    hugging_face_like,
)
from jmudsc.checkpoints.hugging_face import (
    check_donor,
    check_like_donor,
    config_of,
    HuggingFace,
)
from jmudsc.checkpoints.load import load_record
from jmudsc.checkpoints.provenance import check_json, read_arrays, Record
from jmudsc.checkpoints.save import save_with_record, stored_names
from jmudsc.checkpoints.spread import is_spread, save_spread
from jmudsc.checkpoints.urls import AnyPath
from jmudsc.merging.model_card import model_card, parent_at
from jmudsc.merging.result import MergeResult
from jmudsc.paths import flatten, listed

_ASSIGNMENT = "assignment"


def save(
    path: str | os.PathLike[str],
    result: MergeResult,
    *,
    extra: Mapping[str, Any] | None = None,
    notes: Mapping[str, str] | None = None,
    overwrite: bool = False,
    hugging_face: HuggingFace | None = None,
) -> AnyPath:
    """Save merged variables so that the training code of the parents restores them.

    `orbax.checkpoint.StandardCheckpointer().restore(path, target)` reads the result
    as it would read a parent. A folder `jmudsc` inside holds what `load_provenance`
    returns. If the path ends in `.safetensors`, `.npz` or `.msgpack`, the result is
    such a file, with names joined by `/`, and the folder is beside it, called as the
    file with `.jmudsc` after it.

    With `hugging_face`, the result is a directory that transformers loads: safetensors
    files with an index, the configuration, tokenizer and code of another such
    directory.

    `README.md` at the top of a directory, or in the folder beside a file, is a model
    card: what was merged and how, how it compares with its parents, and how to load it.
    It may be edited; an edited one is never replaced.

    If the process dies at any moment, `path` has its old state, absent or an earlier
    merge, or the new one, complete; its record is found. What was written
    is read back and compared before it is put into place.

    Variables that are on disk, as `merge` gives them for models that are, are read and
    merged leaf by leaf while they are written; only a msgpack file is written at once.

    Variables that are spread over several processes are saved by a call in each of
    them: orbax writes one directory, each process its own parts, and a file is written
    by the first.

    Args:
        path: a directory or file to make, or a URL of one; missing parents are made.
            What is saved at a URL is built in a temporary folder and then put there:
            see `docs/checkpoints.md` for how whole that is.
        result: the merge.
        extra: plain JSON values of your own to store in the record.
        notes: file name -> text, written beside the record for people to read.
        overwrite: replace a checkpoint that jmudsc saved there before, once the new
            one is complete, or an empty directory. Nothing else is ever replaced.
        hugging_face: write the directory of a Hugging Face model, like that of the
            base or a parent; its leaves must have the names and shapes of that.

    Returns:
        The absolute path of the checkpoint.

    Raises:
        TypeError: if `result` is no `MergeResult`.
        FileExistsError: if something is at `path` that may not be replaced.
        ValueError: if the format cannot hold the variables, the record is not JSON, or
            the merge has several networks, of which each needs a path of its own.
    """
    if not isinstance(result, MergeResult):
        raise TypeError(
            f"save: expected a MergeResult, got a {type(result).__name__}. Pass what "
            "merge returned."
        )
    if result.networks:
        raise ValueError(
            f"{os.fspath(path)}: expected a single network, got a merge with separate "
            f"leaves, of {len(result.networks)} networks. Save each of "
            "result.networks: save(path, dataclasses.replace(result, "
            "variables=network, networks=())).",
        )
    record = record_of(result, extra or {}, notes or {})
    kind, config, parents = None, None, []
    if hugging_face is not None:
        kind, config = format_like(path, result, hugging_face)
        parents = list(map(parent_at, hugging_face.parents))
    card = model_card(result, parents, config, notes or {}, path)
    record = replace(record, card=card)
    if is_spread(result.variables) and kind is None:
        return save_spread(path, result.variables, record, overwrite=overwrite)
    return save_with_record(
        path, result.variables, record, overwrite=overwrite, kind=kind
    )


def format_like(
    path: str | os.PathLike[str],
    result: MergeResult,
    options: HuggingFace,
) -> tuple[Format, dict[str, Any]]:
    """Return the format of a directory that is like that of a Hugging Face model.

    Args:
        path: where the result is to be.
        result: of one network.
        options: how to write.

    Returns:
        The format, and the configuration of the model.

    Raises:
        ValueError: if the path has an ending, there is no donor, or the leaves are not
            like its own.
    """
    where = os.fspath(path)
    if ending_of(where):
        raise ValueError(
            f"{where}: expected a directory for a Hugging Face model, got a file. "
            "Leave the ending out."
        )
    donor = check_donor(where, options)
    names = stored_names(result.variables, HUGGING_FACE)
    leaves = {names[name]: x for name, x in flatten(result.variables).items()}
    check_like_donor(where, leaves, donor)
    return hugging_face_like(options), config_of(donor)


def load_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load how a merged checkpoint was made.

    Args:
        path: a checkpoint that `save` wrote.

    Returns:
        `recipe`, `extra`, `history`, `versions` (library -> version), `digests`
        (leaf path -> SHA-256 of its dtype, shape and bytes) and `assignment`
        (label -> int32 array); `verdict` too where the merge was judged, and of a
        recipe's merge `parents`, the name and the SHA-256 of what was merged.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if jmudsc did not write the checkpoint, or its record was changed.
    """
    record = load_record(path)
    assignment = read_arrays(record.folder, record.content, _ASSIGNMENT)
    return {**record.content, _ASSIGNMENT: assignment}


def record_of(
    result: MergeResult, extra: Mapping[str, Any], notes: Mapping[str, str]
) -> Record:
    """Describe a merge.

    Args:
        result: the merge.
        extra: plain JSON values of the caller's own.
        notes: file name -> text, for people to read.

    Returns:
        What is stored beside its variables.

    Raises:
        ValueError: if a value is not plain JSON or an assignment not int32.
    """
    check_json("recipe", result.recipe)
    check_json("extra", extra)
    _check_assignment(result.assignment)
    content: dict[str, Any] = {
        "recipe": dict(result.recipe),
        "extra": dict(extra),
        "history": [float(objective) for objective in result.history],
    }
    if result.verdict:
        content["verdict"] = result.verdict.plain()
    return Record(content, {_ASSIGNMENT: result.assignment}, notes)


def _check_assignment(assignment: Mapping[str, np.ndarray]) -> None:
    wrong = [
        f"{label}: {array.dtype}"
        for label, array in assignment.items()
        if array.dtype != np.int32
    ]
    if wrong:
        raise ValueError(
            f"assignment: expected int32, got another type for {len(wrong)} of "
            f"{len(assignment)} labels. Convert them with .astype(np.int32):\n"
            f"{listed(wrong)}"
        )
