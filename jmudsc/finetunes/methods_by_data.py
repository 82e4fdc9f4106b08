"""Methods by data: rows of those that need inputs of each task."""

from jmudsc.finetunes import averages, closed_form, fisher, matrix_work
from jmudsc.finetunes.method import Method
from jmudsc.finetunes.option import Number, Option
from jmudsc.finetunes.shared_options import RTOL, SAMPLES

BY_DATA = (
    Method(
        "regmean",
        "The fit to what each model makes of its inputs.",
        closed_form.regmean,
        cuts="matrices",
        work=matrix_work.gram_solve,
        base="unused",
        options=(
            SAMPLES,
            Option(
                "offdiag",
                0.95,
                Number(0.0, 1.0),
                "what the moments of two different inputs are multiplied by",
            ),
        ),
        lambda_=None,
        learns="inputs",
    ),
    Method(
        "regmean_pp",
        "As regmean, on what the merged layers before make of the inputs.",
        averages.mean,
        base="unused",
        options=(
            SAMPLES,
            Option(
                "offdiag",
                0.95,
                Number(0.0, 1.0),
                "what the moments of two different inputs are multiplied by",
                per_leaf=False,
            ),
        ),
        lambda_=None,
        runs="layers",
        work=matrix_work.gram_solve,
    ),
    Method(
        "lot",
        "The fit of the deltas to what each model makes of its inputs.",
        closed_form.lot,
        cuts="matrices",
        work=matrix_work.gram_solve,
        options=(SAMPLES, RTOL),
        vectors=closed_form.lot_of_scales,
        learns="inputs",
    ),
    Method(
        "featcal",
        "Task arithmetic, each layer then fitted to the features of the models.",
        averages.summed_deltas,
        options=(
            SAMPLES,
            Option(
                "ridge",
                0.05,
                Number(0.0),
                "how much staying near the anchor counts",
                per_leaf=False,
            ),
            Option(
                "anchor",
                2.0,
                Number(),
                "where the anchor is: 0 the base, 1 the start, beyond it further on",
                per_leaf=False,
            ),
            Option(
                "alpha",
                0.3,
                Number(0.0, 1.0),
                "the share of the model's own features in what is fitted",
                per_leaf=False,
            ),
        ),
        lambda_=0.3,
        runs="layers",
        work=matrix_work.gram_solve,
    ),
    Method(
        "fisher",
        "The mean in which entries count by how much the output depends on them.",
        fisher.fisher,
        base="unused",
        options=(
            SAMPLES,
            Option(
                "floor", 1e-6, Number(0.0, above=True), "the least that an entry counts"
            ),
        ),
        lambda_=None,
        learns="gradients",
    ),
)
