"""Command: what `jmudsc lora` does, from folders of adapters to what is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.checkpoints.formats import ending_of
from jmudsc.checkpoints.hugging_face import (
    check_donor,
    HuggingFace,
    is_model,
    SHARD_SIZE,
)
from jmudsc.checkpoints.load import load
from jmudsc.checkpoints.save import check_free
from jmudsc.lora.factor_loras import factor_loras
from jmudsc.lora.fold_lora import fold_lora
from jmudsc.lora.load_lora import load_lora
from jmudsc.lora.lora import Lora
from jmudsc.lora.merge_loras import merge_loras
from jmudsc.lora.save_lora import save_lora
from jmudsc.merging.result import MergeResult
from jmudsc.merging.save_result import save


@dataclass(frozen=True)
class Command:
    """What is asked for on the command line.

    Attributes:
        method: of merging; None for the sum.
        space: in which numbers low-rank updates are merged.
        rank: of the adapter to write; None to write a model.
        options: option of the method -> its value.
        scale: what is added to the base is times this; None for that of the method.
        rename: pattern of names in the adapters -> path in the base.
        axes: pattern of paths in the base -> letters.
        seed: for methods that draw numbers.
        overwrite: whether to replace what was written before.
        shard_size: how many bytes a file of a Hugging Face directory holds at most.
        tokenizer: a directory that the tokenizer of such a directory is copied from;
            None for that of the base.
    """

    method: str | None
    space: str
    rank: int | None
    options: Mapping[str, Any]
    scale: float | None
    rename: Mapping[str, str]
    axes: Mapping[str, str]
    seed: int
    overwrite: bool
    shard_size: int = SHARD_SIZE
    tokenizer: Path | None = None


def run(folders: Sequence[Path], base: Path, out: Path, command: Command) -> str:
    """Fold or merge adapters, and write what they become.

    If the base is the directory of a Hugging Face model and `out` has no ending, so is
    what is written.

    Args:
        folders: of the adapters.
        base: the checkpoint of the base.
        out: where to write.
        command: how.

    Returns:
        A sentence or two on what was done.

    Raises:
        FileNotFoundError: if an adapter or the base is not there.
        FileExistsError: if something is at `out` that may not be replaced.
        ValueError: if an adapter, the base or an option does not fit.
    """
    adapters = [load_lora(folder) for folder in folders]
    variables = load(base, lazy=True)
    if command.rank is not None:
        return _factor(adapters, variables, out, command)
    check_free(out, command.overwrite)
    like = _written_like(folders, base, out, command)
    result = _merged(adapters, variables, command)
    save(out, result, overwrite=command.overwrite, hugging_face=like)
    count = paths.plural(len(result.changes), "leaf", "leaves")
    what = "Folded 1 adapter" if len(adapters) == 1 else f"Merged {len(adapters)}"
    return f"{what}{'' if len(adapters) == 1 else ' adapters'}: {count} changed."


def _written_like(
    folders: Sequence[Path], base: Path, out: Path, command: Command
) -> HuggingFace | None:
    """Return how to write a Hugging Face directory; None if none is written."""
    if ending_of(out) or not is_model(base.expanduser()):
        return None
    parents = (base, *folders)
    like = HuggingFace(base, parents, command.shard_size, command.tokenizer)
    check_donor(str(out), like)
    return like


def _merged(adapters: Sequence[Lora], base: PyTree, command: Command) -> MergeResult:
    is_plain = command.method is None and command.scale is None and not command.options
    if len(adapters) == 1 and is_plain:
        return fold_lora(adapters[0], base, rename=command.rename, axes=command.axes)
    return merge_loras(
        adapters,
        base,
        command.method or "task_arithmetic",
        space=command.space,
        rename=command.rename,
        axes=command.axes,
        key=jax.random.key(command.seed),
        lambda_=command.scale,
        **command.options,
    )


def _factor(adapters: Sequence[Lora], base: PyTree, out: Path, command: Command) -> str:
    assert command.rank is not None
    found = factor_loras(
        adapters,
        base,
        command.method or "task_arithmetic",
        rank=command.rank,
        space=command.space,
        rename=command.rename,
        axes=command.axes,
        key=jax.random.key(command.seed),
        lambda_=command.scale,
        **command.options,
    )
    save_lora(out, found.adapter, overwrite=command.overwrite)
    worst = max(found.lost, key=lambda name: found.lost[name], default=None)
    said = "" if worst is None else f" (most of {worst}, {found.lost[worst]:.2%})"
    return (
        f"Merged {paths.plural(len(adapters), 'adapter')} to rank {command.rank}, "
        f"which loses {found.total:.2%} of the energy{said}."
    )
