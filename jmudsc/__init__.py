"""Merge networks trained apart into one network that does all their tasks.

Merging:
    merge: merge two or more networks; the one call that does it all.
    merge_finetunes: merge models that were trained from one base.
    soup_of_run: average checkpoints of one training run.
    FINETUNE_METHODS: the methods of `merge_finetunes`, by name.
    MergeResult: what `merge` returns: variables, spec, assignment and history.
    Verdict: whether a merged network is better than what went into it.
    Comparison: all merges that method "best" tried, in one table.

Low-rank adapters of a base (LoRA):
    load_lora: read an adapter as PEFT writes it.
    lora_from_tree: take an adapter from a tree of JAX arrays.
    fold_lora: fold an adapter into its base.
    merge_loras: merge several adapters of one base, and fold what they become.
    factor_loras: merge several adapters of one base to one adapter.
    save_lora: write an adapter so that PEFT loads it.
    lora_to_tree: the factors of an adapter as a tree of JAX arrays.
    Lora: a LoRA adapter: low-rank updates, and leaves that are replaced.
    Factored: what `factor_loras` returns: an adapter, and what its rank lost.

The steps of a merge, each usable alone:
    collect: activation moments of several models, in one pass over batches.
    Moments: what `collect` returns.
    match: say which units of several models become one.
    matcher: `match` for several values of alpha, sharing what they have in common.
    Match: what `match` returns: the assignment, and the objective of every sweep.
    METHODS: the names of the methods that `merge` and `match` know.
    combine: average several models in the common order of their units.
    align: match units one to one by a similarity matrix.
    zip_units: match units by a similarity matrix, also two of the same model.

Repairs of a merged network:
    refit: fit every linear layer to what the parents do, by least squares.
    repair: rescale every unit to the parents' mean and standard deviation.
    reset_batch_stats: set running statistics to those of calibration batches.
    pool_batch_stats: set running statistics to those of the parents, without data.

Permutation specs:
    infer_spec: derive from a model what may be permuted, and what goes together.
    check_spec: prove a spec on a model's own variables.
    read_spec: read a spec that was written by hand.
    override: replace rows of a spec.
    register_rule: say what a primitive of yours does to axes.
    freeze: keep labels of a spec in place.
    permute: put the units of a model into another order.
    random_permutations: draw a random order for every label.
    PermutationSpec: a spec: the axes of every leaf, and the labels on them.
    Label: a set of axes that are permuted together.
    Site: one axis of one leaf.
    Units: an axis that runs over the units of a label.
    Fixed: an axis that stays as it is.
    Product: an axis that several axes were reshaped into.
    Concat: an axis of several parts, one after another.

Checkpoints:
    load: read variables from orbax, safetensors, msgpack or npz.
    load_shapes: read the shapes and dtypes of a checkpoint alone.
    load_provenance: read how a merged checkpoint was made.
    save: write a result of `merge`, whole or not at all.
    HuggingFace: how `save` writes the directory of a Hugging Face model.

Submodules:
    adapters: models of Flax, Equinox, Haiku, Keras, Hugging Face as pure functions.
    landscape: losses around and between networks, as numbers and figures.
    recipes: from a YAML file to a merge on disk, as the command line does it.
    experiments: the networks, data and training of the shipped experiments.

Nothing is imported before it is used: `import jmudsc` takes no time.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors read
    from jmudsc import (
        adapters as adapters,
        experiments as experiments,
        landscape as landscape,
        recipes as recipes,
    )
    from jmudsc.checkpoints.hugging_face import HuggingFace as HuggingFace
    from jmudsc.checkpoints.load import (
        load as load,
        load_shapes as load_shapes,
    )
    from jmudsc.derivation.check_spec import check_spec as check_spec
    from jmudsc.derivation.infer_spec import infer_spec as infer_spec
    from jmudsc.derivation.read_spec import override as override, read_spec as read_spec
    from jmudsc.derivation.rules.table import register_rule as register_rule
    from jmudsc.finetunes.merge_finetunes import merge_finetunes as merge_finetunes
    from jmudsc.finetunes.methods import FINETUNE_METHODS as FINETUNE_METHODS
    from jmudsc.finetunes.run_soup import soup_of_run as soup_of_run
    from jmudsc.lora.factor_loras import (
        factor_loras as factor_loras,
        Factored as Factored,
    )
    from jmudsc.lora.flax_pairs import lora_from_tree as lora_from_tree
    from jmudsc.lora.fold_lora import fold_lora as fold_lora
    from jmudsc.lora.load_lora import load_lora as load_lora
    from jmudsc.lora.lora import Lora as Lora
    from jmudsc.lora.merge_loras import merge_loras as merge_loras
    from jmudsc.lora.save_lora import (
        lora_to_tree as lora_to_tree,
        save_lora as save_lora,
    )
    from jmudsc.matching.activation_statistics import collect as collect
    from jmudsc.matching.assignment import align as align, zip_units as zip_units
    from jmudsc.matching.coordinate_descent import (
        Match as Match,
        match as match,
        matcher as matcher,
    )
    from jmudsc.matching.methods import METHODS as METHODS
    from jmudsc.matching.moments import Moments as Moments
    from jmudsc.merging.comparison import Comparison as Comparison
    from jmudsc.merging.merge import merge as merge
    from jmudsc.merging.result import MergeResult as MergeResult
    from jmudsc.merging.save_result import (
        load_provenance as load_provenance,
        save as save,
    )
    from jmudsc.merging.verdict import Verdict as Verdict
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

    __version__: str

# What is imported at first use: names by the module that they come from.
_NAMES_OF = {
    "checkpoints.hugging_face": "HuggingFace",
    "checkpoints.load": "load load_shapes",
    "derivation.check_spec": "check_spec",
    "derivation.infer_spec": "infer_spec",
    "derivation.read_spec": "override read_spec",
    "derivation.rules.table": "register_rule",
    "finetunes.merge_finetunes": "merge_finetunes",
    "finetunes.methods": "FINETUNE_METHODS",
    "finetunes.run_soup": "soup_of_run",
    "lora.lora": "Lora",
    "lora.factor_loras": "Factored factor_loras",
    "lora.flax_pairs": "lora_from_tree",
    "lora.fold_lora": "fold_lora",
    "lora.load_lora": "load_lora",
    "lora.merge_loras": "merge_loras",
    "lora.save_lora": "lora_to_tree save_lora",
    "matching.activation_statistics": "collect",
    "matching.assignment": "align zip_units",
    "matching.coordinate_descent": "Match match matcher",
    "matching.methods": "METHODS",
    "matching.moments": "Moments",
    "merging.comparison": "Comparison",
    "merging.merge": "merge",
    "merging.result": "MergeResult",
    "merging.save_result": "load_provenance save",
    "merging.verdict": "Verdict",
    "reordering.combine": "combine",
    "reordering.permute": "permute random_permutations",
    "repairs.batch_stats": "pool_batch_stats reset_batch_stats",
    "repairs.least_squares": "refit",
    "repairs.rescale": "repair",
    "spec.axes": "Concat Fixed Product Units",
    "spec.freeze": "freeze",
    "spec.permutation_spec": "Label PermutationSpec Site",
}
_MODULE_OF = {
    name: f"jmudsc.{module}"
    for module, names in _NAMES_OF.items()
    for name in names.split()
}
_SUBMODULES = ("adapters", "experiments", "landscape", "recipes")

__all__ = [*_MODULE_OF, *_SUBMODULES]  # pyright: ignore[reportUnsupportedDunderAll]

if not TYPE_CHECKING:  # else type checkers would take any name for known

    def __getattr__(name: str) -> object:
        """Import a public name at its first use."""
        if name in _MODULE_OF:
            value = getattr(_import(_MODULE_OF[name]), name)
        elif name in _SUBMODULES:
            value = _import(f"jmudsc.{name}")
        elif name == "__version__":
            value = _import("importlib.metadata").version("jmudsc")
        else:
            raise AttributeError(f"module 'jmudsc' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _import(module: str):
    from importlib import import_module

    return import_module(module)
