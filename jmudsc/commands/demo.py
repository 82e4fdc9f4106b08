"""Demo: networks trained on real digits, merged by every method."""

from pathlib import Path

from jmudsc.recipes.progress_bar import drawn


def demo(
    out: Path = Path("jmudsc-demo"),
    networks: tuple[str, ...] = ("mlp", "resnet20"),
    seeds: tuple[int, ...] = (0,),
) -> None:
    """Train pairs of networks apart on real digits and merge them by every method.

    Prints a table of accuracies; writes checkpoints, recipes and a report.

    Args:
        out: directory to make.
        networks: which networks to train: mlp, resnet20.
        seeds: one pair of each network is trained for every seed.
    """
    from jmudsc.experiments.extra import check_extra

    check_extra("demo")
    from jmudsc.experiments.demo import run_demo

    with drawn() as progress:
        text = run_demo(out, networks, seeds, progress)
    print(text)
    print(f"Wrote {out}/report.md, and checkpoints and recipes beside it.")
