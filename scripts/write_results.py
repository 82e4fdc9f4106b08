"""Write docs/results*.md from the reports of experiments that were run.

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
FINETUNES = (
    "finetunes-vit",
    "finetunes-resnet",
    "finetunes-resnet-bn",
    "finetunes-resnet-laptop",
    "finetunes-vit-laptop",
    "finetunes-resnet-bn-laptop",
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


INTRO_OF_FINETUNES = """# Results on fine-tunes

Written by `python scripts/write_results.py` from the reports of the commands below. One
base is trained on images of digits (MNIST) and photos (CIFAR-10), in one space of class
vectors: every class has a fixed random unit vector, and a network is trained to point
at that of the image's class, so that it needs no head of its own for a task. The base
is then fine-tuned to eight tasks: images turned, negative, in relief, and so on; some
have four classes only. Images are averaged down to the size that is given; those of
CIFAR-10 are JPEG copies of the originals. No fine-tune has seen an image that the base
was trained on, nor one that scales were chosen on or that methods were given without
its label.

*All tasks at once* is the base fine-tuned to the images of all tasks together, told
apart among all classes. Where a network has BatchNorm, running statistics are pooled
from those of the fine-tunes where there are no images, and reset in batches that mix
all tasks where there are. [Which method?](which-method.md) says what follows from it.
"""


def main() -> None:
    """Write the pages for which there is a report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    runs = parser.parse_args().runs
    for page, intro, order in (
        ("results", INTRO, ORDER),
        ("results-finetunes", INTRO_OF_FINETUNES, FINETUNES),
    ):
        if any((runs / name / "report.md").exists() for name in order):
            (ROOT / f"docs/{page}.md").write_text(_page(runs, intro, order))


def _page(runs: Path, intro: str, order: tuple[str, ...]) -> str:
    """Put the reports of one page together."""
    reports = {name: runs / name / "report.md" for name in order}
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
    return "\n".join([intro, *sections])


if __name__ == "__main__":
    main()
