"""Soup: an average of checkpoints of one run."""

from pathlib import Path
from typing import Literal

from jmudsc.commands.values import Place


def soup(
    run: Place,
    out: str,
    last: int | None = None,
    steps: tuple[int, ...] = (),
    weights: Literal["mean", "ema", "wsm", "greedy"] = "mean",
    decay: str | None = None,
    score: str | None = None,
    overwrite: bool = False,
) -> None:
    """Average checkpoints of one training run, and save the result as a checkpoint.

    Takes params and batch_stats, never the state of an optimizer. Running statistics
    are averaged with the rest.

    Args:
        run: directory of the run, or its URL, with a directory for each step.
        out: the checkpoint to write: a directory, or a .safetensors, .npz or .msgpack
            file, or a URL of one.
        last: how many of the last steps to take; all if neither last nor steps is
            given.
        steps: which steps to take.
        weights: the share of each step; greedy keeps those that make the score better.
        decay: of ema a number in (0, 1); of wsm linear or minus-sqrt.
        score: for greedy, module:name of a function of variables, larger for better
            ones; the module may lie in the current directory.
        overwrite: replace an earlier merge at out.
    """
    from jmudsc.finetunes.run_soup import read_decay, soup_of_run
    from jmudsc.merging.save_result import save
    from jmudsc.recipes.import_path import read_import_path, resolve

    judge = None if score is None else resolve(read_import_path(score), Path.cwd())
    result = soup_of_run(
        run,
        last=last,
        steps=steps or None,
        weights=weights,
        decay=read_decay(decay),
        score=judge,
    )
    save(out, result, overwrite=overwrite)
    print(f"Averaged the steps {', '.join(map(str, result.recipe['steps']))}.")
    print(f"Wrote {out}")
