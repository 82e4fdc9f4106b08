"""Merge networks trained apart into one network that does all their tasks."""

from importlib.metadata import version

from jmudsc.checkpoints.load import (
    load as load,
    load_provenance as load_provenance,
    load_shapes as load_shapes,
)
from jmudsc.checkpoints.save import save as save
from jmudsc.derivation.check_spec import check_spec as check_spec
from jmudsc.derivation.infer_spec import infer_spec as infer_spec
from jmudsc.derivation.read_spec import override as override, read_spec as read_spec
from jmudsc.matching.assignment import align as align, zip_units as zip_units
from jmudsc.matching.coordinate_descent import (
    Match as Match,
    match as match,
    matcher as matcher,
)
from jmudsc.matching.methods import METHODS as METHODS
from jmudsc.matching.moments import collect as collect, Moments as Moments
from jmudsc.merging.merge import merge as merge
from jmudsc.merging.result import MergeResult as MergeResult
from jmudsc.reordering.combine import combine as combine
from jmudsc.reordering.permute import (
    permute as permute,
    random_permutations as random_permutations,
)
from jmudsc.repairs.batch_stats import (
    pool_batch_stats as pool_batch_stats,
    reset_batch_stats as reset_batch_stats,
)
from jmudsc.repairs.least_squares import refit as refit
from jmudsc.repairs.rescale import repair as repair
from jmudsc.spec.axes import (
    Concat as Concat,
    Fixed as Fixed,
    Product as Product,
    Units as Units,
)
from jmudsc.spec.freeze import freeze as freeze
from jmudsc.spec.permutation_spec import (
    Label as Label,
    PermutationSpec as PermutationSpec,
    Site as Site,
)

__version__ = version("jmudsc")
