"""Methods by matrix: rows of those that take leaves as matrices, without data."""

from jmudsc.finetunes import closed_form, matrix_work, spectral
from jmudsc.finetunes.method import Method
from jmudsc.finetunes.option import Number, OneOf, Option, Whole
from jmudsc.finetunes.shared_options import RTOL, SHARE

BY_MATRIX = (
    Method(
        "tsv",
        "The top singular directions of each delta, made orthogonal.",
        spectral.tsv,
        work=matrix_work.tsv,
        cuts="matrices",
        options=(
            Option(
                "rank",
                None,
                OneOf((None,), Whole()),
                "directions of each model; None for an equal part of all there are",
            ),
        ),
        calibration=1.0,
    ),
    Method(
        "iso_c",
        "The sum of the deltas with equal singular values.",
        spectral.iso_c,
        work=matrix_work.iso_c,
        cuts="matrices",
        options=(RTOL,),
        lambda_=1.4,
    ),
    Method(
        "iso_cts",
        "Common and task directions with equal singular values.",
        spectral.iso_cts,
        work=matrix_work.iso_cts,
        cuts="matrices",
        options=(
            Option(
                "common_space_fraction",
                0.8,
                Number(0.0, 1.0),
                "the share of directions that are of the sum",
            ),
            RTOL,
        ),
        lambda_=1.4,
        calibration=0.2,
    ),
    Method(
        "wudi",
        "What differs least from each delta in its own directions.",
        closed_form.wudi,
        work=matrix_work.gram_solve,
        cuts="matrices",
        options=(
            Option(
                "solver", "spectral", OneOf(("spectral", "exact")), "how it is solved"
            ),
            Option(
                "rank",
                "participation",
                OneOf(("participation",), SHARE),
                "how many eigenvectors count: those that take part, or a share",
            ),
            Option(
                "exp_time",
                300.0,
                Number(0.0),
                "how long a descent the solution along a share stands for",
            ),
            Option(
                "init",
                "sum",
                OneOf(("sum", "mean", "zero")),
                "what is kept along the other eigenvectors",
            ),
            Option("ridge", 1e-8, Number(0.0, above=True), "added to solve exactly"),
        ),
        calibration=1.0,
    ),
    Method(
        "actmat",
        "The solution for second moments of the deltas.",
        closed_form.actmat,
        work=matrix_work.gram_solve,
        cuts="matrices",
        options=(
            Option(
                "weight", 1.0, Number(0.0), "how much a model counts", per_model=True
            ),
            Option("ridge", 0.0, Number(0.0), "added to the moments, in their unit"),
            RTOL,
        ),
    ),
    Method(
        "ace",
        "The solution for covariances of the deltas over their outputs.",
        closed_form.ace,
        work=matrix_work.ace,
        cuts="matrices",
        options=(
            Option(
                "epsilon", 1e-2, Number(0.0, above=True), "added to each covariance"
            ),
            Option("k_frac", 0.3, SHARE, "the share of directions made even"),
        ),
    ),
)
