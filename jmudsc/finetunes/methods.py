"""Methods: the table of all ways to merge fine-tunes, a row each."""

from jmudsc import paths
from jmudsc.finetunes import (
    averages,
    closed_form,
    fisher,
    spectral,
    spheres,
    task_vectors,
)
from jmudsc.finetunes.method import Method
from jmudsc.finetunes.option import Flag, Number, OneOf, Option, Whole

_WEIGHT = Option("weight", 1.0, Number(), "how much a model counts", per_model=True)
_SCALE = "what is added to the base is multiplied by this"
_NO_DATA = Number(0.0, 1.0, above=True)


def _density(default: float) -> Option:
    about = "the share of the entries of a delta that are kept"
    return Option("density", default, _NO_DATA, about, per_model=True)


def _normalize(default: bool) -> Option:
    about = "divide by the weights that took part"
    return Option("normalize", default, Flag(), about)


_RESCALE = Option(
    "rescale",
    "expectation",
    OneOf(("expectation", "l1", None)),
    "what makes up for dropped entries: dividing by the chance to be kept, or keeping "
    "the sum of magnitudes, as mergekit does",
)
_EPSILON = Option(
    "epsilon",
    0.15,
    Number(0.0, 1.0),
    "how much likelier large entries are kept than small",
)
_GAMMA = Option(
    "gamma", 0.01, Number(0.0, 1.0), "the share of largest entries to leave out"
)
_SCOPE = Option(
    "scope",
    "tensor",
    OneOf(("tensor", "tree")),
    "whether the largest entries are those of a leaf or of all leaves together",
    per_leaf=False,
)
_AGG = Option(
    "agg", "mean", OneOf(("mean", "sum")), "what is taken of entries that agree"
)
_RTOL = Option(
    "rtol",
    None,
    OneOf((None,), Number(0.0, 1.0)),
    "singular values below this share of the largest are taken as 0",
)
_SAMPLES = Option(
    "samples", 256, Whole(), "examples of each task that are used", per_leaf=False
)

_ROWS = (
    Method(
        "linear",
        "The weighted mean of the models.",
        averages.linear,
        base="unused",
        options=(_WEIGHT, _normalize(True)),
        aliases=("average", "soup"),
        lambda_=None,
        check=averages.weight_problems,
    ),
    Method(
        "greedy_soup",
        "The mean of those models that make it better, taken up one by one.",
        None,
        base="unused",
        options=(
            Option(
                "order",
                "score",
                OneOf(("score", "given")),
                "whether models are gone through from the best to the worst, or as "
                "they are given",
                per_leaf=False,
            ),
        ),
        lambda_=None,
        runs="greedy",
    ),
    Method(
        "window",
        "The mean of checkpoints of one run, oldest first, by the shares of a schedule.",
        averages.window,
        base="unused",
        options=(
            Option(
                "weights",
                "mean",
                OneOf(("mean", "ema", "wsm")),
                "the shares: equal, an exponential moving average, or those that stand "
                "for decaying the learning rate",
                per_leaf=False,
            ),
            Option(
                "decay",
                None,
                OneOf((None, *averages.DECAYS), Number(0.0, 1.0)),
                "what ema keeps of the older ones, or the decay that wsm stands for",
                per_leaf=False,
            ),
        ),
        lambda_=None,
        check=averages.decay_problems,
    ),
    Method(
        "task_arithmetic",
        "The sum of what was trained into each model.",
        task_vectors.task_arithmetic,
        options=(_WEIGHT, _normalize(False)),
        check=averages.weight_problems,
    ),
    Method(
        "ties",
        "The largest entries of each delta, those of the elected sign averaged.",
        task_vectors.ties,
        options=(_WEIGHT, _density(0.2), _normalize(True), _SCOPE, _AGG),
        learns="thresholds",
        check=task_vectors.scope_problems,
    ),
    Method(
        "dare_linear",
        "The sum of deltas of which entries were dropped at random.",
        task_vectors.dare_linear,
        options=(_WEIGHT, _density(0.5), _normalize(False), _RESCALE),
        is_random=True,
        check=averages.weight_problems,
    ),
    Method(
        "dare_ties",
        "The vote of deltas of which entries were dropped at random.",
        task_vectors.dare_ties,
        options=(_WEIGHT, _density(0.5), _normalize(False), _RESCALE),
        is_random=True,
    ),
    Method(
        "breadcrumbs",
        "The sum of deltas without their largest and smallest entries.",
        task_vectors.breadcrumbs,
        options=(_WEIGHT, _density(0.9), _GAMMA, _normalize(False)),
        check=averages.weight_problems,
    ),
    Method(
        "breadcrumbs_ties",
        "The vote of deltas without their largest and smallest entries.",
        task_vectors.breadcrumbs_ties,
        options=(_WEIGHT, _density(0.9), _GAMMA, _normalize(False)),
    ),
    Method(
        "della",
        "The vote of deltas whose small entries were dropped more often than large.",
        task_vectors.della,
        options=(_WEIGHT, _density(0.5), _EPSILON, _normalize(True), _RESCALE),
        is_random=True,
        check=task_vectors.epsilon_problems,
    ),
    Method(
        "della_linear",
        "The sum of deltas whose small entries were dropped more often than large.",
        task_vectors.della_linear,
        options=(_WEIGHT, _density(0.5), _EPSILON, _normalize(False), _RESCALE),
        is_random=True,
        check=task_vectors.epsilon_problems,
    ),
    Method(
        "sce",
        "Entries that vary most between models, by the size of each delta, voted on.",
        task_vectors.sce,
        options=(
            Option("select_topk", 1.0, _NO_DATA, "the share of entries that are kept"),
        ),
    ),
    Method(
        "ram",
        "What one model changed as it is, what several changed averaged.",
        task_vectors.ram,
        options=(
            _WEIGHT,
            Option("epsilon", 1e-5, Number(0.0), "the largest entry that is no change"),
        ),
    ),
    Method(
        "slerp",
        "The point between two networks on the sphere.",
        spheres.slerp,
        base="unused",
        options=(
            Option(
                "t", 0.5, Number(0.0, 1.0), "the share of the way to the second one"
            ),
        ),
        fewest=2,
        most=2,
        lambda_=None,
    ),
    Method(
        "nuslerp",
        "The point on the sphere between two deltas, or two networks without a base.",
        spheres.nuslerp,
        base="optional",
        options=(
            _WEIGHT,
            Option("flatten", True, Flag(), "take leaves whole, not by output unit"),
        ),
        fewest=2,
        most=2,
        by_column=("flatten", False),
    ),
    Method(
        "karcher",
        "The mean of the networks on the sphere.",
        spheres.karcher,
        base="unused",
        options=(
            Option("max_iter", 10, Whole(), "the most steps towards it"),
            Option("tol", 1e-5, Number(0.0), "the step that is taken as none"),
        ),
        lambda_=None,
    ),
    Method(
        "model_stock",
        "As far from the base towards the mean as the deltas agree.",
        spheres.model_stock,
        options=(
            Option("filter_wise", False, Flag(), "output unit by output unit"),
            Option("clamp", True, Flag(), "stay between the base and the mean"),
        ),
        fewest=2,
        lambda_=None,
        by_column=("filter_wise", True),
    ),
    Method(
        "tsv",
        "The top singular directions of each delta, made orthogonal.",
        spectral.tsv,
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
        cuts="matrices",
        options=(_RTOL,),
        lambda_=1.4,
    ),
    Method(
        "iso_cts",
        "Common and task directions with equal singular values.",
        spectral.iso_cts,
        cuts="matrices",
        options=(
            Option(
                "common_space_fraction",
                0.8,
                Number(0.0, 1.0),
                "the share of directions that are of the sum",
            ),
            _RTOL,
        ),
        lambda_=1.4,
        calibration=0.2,
    ),
    Method(
        "wudi",
        "What differs least from each delta in its own directions.",
        closed_form.wudi,
        cuts="matrices",
        options=(
            Option(
                "solver", "spectral", OneOf(("spectral", "exact")), "how it is solved"
            ),
            Option(
                "rank",
                "participation",
                OneOf(("participation",), _NO_DATA),
                "how many eigenvectors are solved for: as many as take part, or a share",
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
        cuts="matrices",
        options=(
            Option(
                "weight", 1.0, Number(0.0), "how much a model counts", per_model=True
            ),
            Option("ridge", 0.0, Number(0.0), "added to the moments, in their unit"),
            _RTOL,
        ),
    ),
    Method(
        "ace",
        "The solution for covariances of the deltas over their outputs.",
        closed_form.ace,
        cuts="matrices",
        options=(
            Option(
                "epsilon", 1e-2, Number(0.0, above=True), "added to each covariance"
            ),
            Option("k_frac", 0.3, _NO_DATA, "the share of directions made even"),
        ),
    ),
    Method(
        "regmean",
        "The fit to what each model makes of its inputs.",
        closed_form.regmean,
        cuts="matrices",
        base="unused",
        options=(
            _SAMPLES,
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
            _SAMPLES,
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
    ),
    Method(
        "lot",
        "The fit of the deltas to what each model makes of its inputs.",
        closed_form.lot,
        cuts="matrices",
        options=(_SAMPLES, _RTOL),
        learns="inputs",
    ),
    Method(
        "featcal",
        "Task arithmetic, each layer then fitted to the features of the models.",
        averages.summed_deltas,
        options=(
            _SAMPLES,
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
    ),
    Method(
        "fisher",
        "The mean in which each entry counts as much as its model's output depends on it.",
        fisher.fisher,
        base="unused",
        options=(
            _SAMPLES,
            Option(
                "floor", 1e-6, Number(0.0, above=True), "the least that an entry counts"
            ),
        ),
        lambda_=None,
        learns="gradients",
    ),
)

FINETUNE_METHODS = {row.name: row for row in _ROWS}
_BY_ALIAS = {alias: row for row in _ROWS for alias in (row.name, *row.aliases)}


def method_problems(name: object) -> list[str]:
    """Return what is wrong with the name of a method: nothing, or a line that says it."""
    if name in _BY_ALIAS:
        return []
    hint = paths.did_you_mean(name, _BY_ALIAS) if isinstance(name, str) else ""
    known = ", ".join(FINETUNE_METHODS)
    return [f"method: expected one of {known}, got {name!r}{hint}"]


def method_of(name: str) -> Method:
    """Return the row of a method by its name or another name of it."""
    return _BY_ALIAS[name]
