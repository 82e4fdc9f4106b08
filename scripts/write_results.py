"""Write docs/results.md from the reports of experiments that were run.

    python scripts/write_results.py [--runs runs]

Every section is the report that `jmudsc experiment` wrote, in the order below; those
that were not run are left out, and listed at the end with their commands.
"""

import argparse
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = (
    "digits-mlp",
    "digits-resnet20",
    "digits-vit",
    "digits-vit-wide",
    "mnist-mlp",
    "mnist-resnet20",
    "cifar10-resnet20x1-laptop",
    "cifar10-resnet20x4",
    "cifar10-resnet20x8",
    "cifar10-resnet20-gn",
    "cifar10-vit",
    "digits-mlp-three",
    "digits-mlp-five",
    "mnist-mlp-three",
    "mnist-mlp-five",
)
INTRO = """# Results

Written by `python scripts/write_results.py` from the reports of the commands below.
Networks are trained apart, from different initializations, on parts of the classes of
one dataset, with a fixed random unit vector per class as target, and merged by every
method. *All classes* is one network of the same size trained on all of them; the
*ensemble* runs all parents. `alpha` is the best for each seed on training images, 0 and
1 among the values. *+ refit* fits every map to the mean of the parents, *+ refit by
task* to the parent whose task an image is from ([method](method.md#after-averaging)).
Where a network has BatchNorm, running statistics are reset for every merged network,
the average included. Seconds are means over seeds, on a machine that did other work
too; those of the networks that are not merged include training, where the run that
wrote the report trained them.

Of tasks whose heads are kept apart, see [tasks.md](tasks.md); of the loss between and
around parents, [landscape.md](landscape.md); of time and memory,
[performance.md](performance.md).
"""


def main() -> None:
    """Put the reports together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    runs = parser.parse_args().runs
    reports = {name: runs / name / "report.md" for name in ORDER}
    sections = [
        # One level deeper than in the report itself.
        "#" + file.read_text()
        for file in reports.values()
        if file.exists()
    ]
    left = [name for name, file in reports.items() if not file.exists()]
    if left:
        commands = [f"jmudsc experiment configs/{n}.yaml --data-dir DIR" for n in left]
        text = "## Without results here\n\n```sh\n{}\n```\n"
        sections.append(text.format("\n".join(commands)))
    (ROOT / "docs/results.md").write_text("\n".join([INTRO, *sections]))


if __name__ == "__main__":
    main()
