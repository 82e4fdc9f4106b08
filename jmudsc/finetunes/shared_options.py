"""Shared options: those that several methods have, each said once."""

from jmudsc.finetunes.option import Flag, Number, OneOf, Option, Whole

WEIGHT = Option("weight", 1.0, Number(), "how much a model counts", per_model=True)
SHARE = Number(0.0, 1.0, above=True)


def density(default: float) -> Option:
    """Return the option of what is kept of each delta."""
    about = "the share of the entries of a delta that are kept"
    return Option("density", default, SHARE, about, per_model=True)


def normalize(default: bool) -> Option:
    """Return the option of whether a sum becomes a mean."""
    about = "divide by the weights that took part"
    return Option("normalize", default, Flag(), about)


RESCALE = Option(
    "rescale",
    "expectation",
    OneOf(("expectation", "l1", None)),
    "what makes up for dropped entries: dividing by the chance to be kept, or keeping "
    "the sum of magnitudes, as mergekit does",
)
EPSILON = Option(
    "epsilon",
    0.15,
    Number(0.0, 1.0),
    "how much likelier large entries are kept than small",
)
GAMMA = Option(
    "gamma", 0.01, Number(0.0, 1.0), "the share of largest entries to leave out"
)
SCOPE = Option(
    "scope",
    "tensor",
    OneOf(("tensor", "tree")),
    "whether the largest entries are those of a leaf or of all leaves together",
    per_leaf=False,
)
AGG = Option(
    "agg", "mean", OneOf(("mean", "sum")), "what is taken of entries that agree"
)
RTOL = Option(
    "rtol",
    None,
    OneOf((None,), Number(0.0, 1.0)),
    "singular values below this share of the largest are taken as 0",
)
SAMPLES = Option(
    "samples", 256, Whole(), "examples of each task that are used", per_leaf=False
)
