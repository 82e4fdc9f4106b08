"""Merge networks trained apart into one network that does all their tasks."""

from importlib.metadata import version

from jmudsc.assignment import align as align, zip_units as zip_units
from jmudsc.axes import (
    Concat as Concat,
    Fixed as Fixed,
    Product as Product,
    Units as Units,
)
from jmudsc.batch_stats import reset_batch_stats as reset_batch_stats
from jmudsc.check import check_spec as check_spec
from jmudsc.checkpoints import (
    load as load,
    load_provenance as load_provenance,
    load_shapes as load_shapes,
)
from jmudsc.combine import combine as combine
from jmudsc.derive import infer_spec as infer_spec
from jmudsc.freeze import freeze as freeze
from jmudsc.handwritten import override as override, read_spec as read_spec
from jmudsc.match import (
    Match as Match,
    match as match,
    matcher as matcher,
    METHODS as METHODS,
)
from jmudsc.merge import merge as merge
from jmudsc.moments import collect as collect, Moments as Moments
from jmudsc.permute import (
    permute as permute,
    random_permutations as random_permutations,
)
from jmudsc.pooled import pool_batch_stats as pool_batch_stats
from jmudsc.refit import refit as refit
from jmudsc.repair import repair as repair
from jmudsc.result import MergeResult as MergeResult
from jmudsc.saving import save as save
from jmudsc.spec import Label as Label, PermutationSpec as PermutationSpec, Site as Site

__version__ = version("jmudsc")
