"""Methods by entry: rows of those that take leaves as runs of entries."""

from jmudsc.finetunes import averages, spheres, task_vectors
from jmudsc.finetunes.method import Method
from jmudsc.finetunes.option import Flag, Number, OneOf, Option, Whole
from jmudsc.finetunes.shared_options import (
    AGG,
    density,
    EPSILON,
    GAMMA,
    normalize,
    RESCALE,
    SCOPE,
    SHARE,
    WEIGHT,
)

BY_ENTRY = (
    Method(
        "linear",
        "The weighted mean of the models.",
        averages.linear,
        base="unused",
        options=(WEIGHT, normalize(True)),
        aliases=("average", "soup"),
        lambda_=None,
        check=averages.weight_problems,
        is_elementwise=True,
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
        "The mean of checkpoints of one run, oldest first, by a schedule of shares.",
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
        is_elementwise=True,
    ),
    Method(
        "task_arithmetic",
        "The sum of what was trained into each model.",
        task_vectors.task_arithmetic,
        options=(WEIGHT, normalize(False)),
        check=averages.weight_problems,
        is_elementwise=True,
    ),
    Method(
        "ties",
        "The largest entries of each delta, those of the elected sign averaged.",
        task_vectors.ties,
        options=(WEIGHT, density(0.2), normalize(True), SCOPE, AGG),
        learns="thresholds",
        check=task_vectors.scope_problems,
        is_elementwise=True,
        measures=task_vectors.measured,
    ),
    Method(
        "dare_linear",
        "The sum of deltas of which entries were dropped at random.",
        task_vectors.dare_linear,
        options=(WEIGHT, density(0.5), normalize(False), RESCALE),
        is_random=True,
        check=averages.weight_problems,
    ),
    Method(
        "dare_ties",
        "The vote of deltas of which entries were dropped at random.",
        task_vectors.dare_ties,
        options=(WEIGHT, density(0.5), normalize(False), RESCALE),
        is_random=True,
    ),
    Method(
        "breadcrumbs",
        "The sum of deltas without their largest and smallest entries.",
        task_vectors.breadcrumbs,
        options=(WEIGHT, density(0.9), GAMMA, normalize(False)),
        check=averages.weight_problems,
    ),
    Method(
        "breadcrumbs_ties",
        "The vote of deltas without their largest and smallest entries.",
        task_vectors.breadcrumbs_ties,
        options=(WEIGHT, density(0.9), GAMMA, normalize(False)),
    ),
    Method(
        "della",
        "The vote of deltas whose small entries were dropped more often than large.",
        task_vectors.della,
        options=(WEIGHT, density(0.5), EPSILON, normalize(True), RESCALE),
        is_random=True,
        check=task_vectors.epsilon_problems,
    ),
    Method(
        "della_linear",
        "The sum of deltas whose small entries were dropped more often than large.",
        task_vectors.della_linear,
        options=(WEIGHT, density(0.5), EPSILON, normalize(False), RESCALE),
        is_random=True,
        check=task_vectors.epsilon_problems,
    ),
    Method(
        "sce",
        "Entries that vary most between models, by the size of each delta, voted on.",
        task_vectors.sce,
        options=(
            Option("select_topk", 1.0, SHARE, "the share of entries that are kept"),
        ),
    ),
    Method(
        "ram",
        "What one model changed as it is, what several changed averaged.",
        task_vectors.ram,
        options=(
            WEIGHT,
            Option("epsilon", 1e-5, Number(0.0), "the largest entry that is no change"),
        ),
        is_elementwise=True,
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
            WEIGHT,
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
)
