"""LoRA: adapters of one base, folded or merged."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from jmudsc.commands.values import pairs, plain


def lora(
    adapters: Annotated[tuple[Path, ...], tyro.conf.Positional],
    base: Path,
    out: Path,
    method: str | None = None,
    space: Literal["full", "knots", "core"] = "full",
    rank: int | None = None,
    weights: tuple[float, ...] = (),
    scale: float | None = None,
    options: tuple[str, ...] = (),
    rename: tuple[str, ...] = (),
    axes: tuple[str, ...] = (),
    seed: int = 0,
    shard_size: int = 5 * 10**9,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Fold a LoRA adapter into its base, or merge several adapters of one base.

    Writes the base with what the adapters become folded in, or one adapter of the rank
    that is asked for. The base is read, and written, leaf by leaf. Of a base that is
    the directory of a Hugging Face model such a directory comes, unless out has an
    ending.

    Args:
        adapters: folders as PEFT writes them.
        base: the checkpoint that they were trained on.
        out: the checkpoint to write, a directory or a .safetensors, .npz or .msgpack
            file; with a rank the folder of an adapter.
        method: how to merge what the adapters add to each leaf, one of the methods of
            merge_finetunes that need no data; task_arithmetic (the sum) if not given.
        space: in which numbers low-rank updates are merged.
        rank: write one adapter of this rank.
        weights: how much each adapter counts, one for each.
        scale: what is added to the base is times this (lambda_).
        options: of the method, NAME=VALUE, such as density=0.2.
        rename: OLD=NEW, pattern of names in the adapters and path in the base.
        axes: PATTERN=LETTERS, the axes of leaves whose names do not tell.
        seed: for methods that draw numbers.
        shard_size: how many bytes a file of a Hugging Face directory holds at most.
        tokenizer: the directory that the tokenizer of such a directory is copied from,
            if not the base.
        overwrite: replace an earlier merge at out.
    """
    from jmudsc.lora.command import Command, run

    chosen = {name: plain(value) for name, value in pairs("options", options)}
    command = Command(
        method,
        space,
        rank,
        {**chosen, **({"weight": list(weights)} if weights else {})},
        scale,
        dict(pairs("rename", rename)),
        dict(pairs("axes", axes)),
        seed,
        overwrite,
        shard_size,
        tokenizer,
    )
    print(run(adapters, base, out, command))
    print(f"Wrote {out}")
