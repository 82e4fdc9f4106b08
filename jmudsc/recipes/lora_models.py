"""LoRA models: adapters among the models of a recipe, each folded into the base.

Such a model is the base with the adapter folded in. It is folded when it is read, and
in float32 at least where it is merged, so that what it adds is not rounded to a base in
half precision.
"""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.checkpoints.dtypes import cast
from jmudsc.checkpoints.load import fingerprint, fingerprint_of
from jmudsc.checkpoints.urls import is_url
from jmudsc.finetunes.options import COMMON, Common, FinetuneOptions
from jmudsc.finetunes.request import Request
from jmudsc.lora.fold_lora import fold_lora
from jmudsc.lora.load_lora import CONFIG, load_lora, WEIGHTS
from jmudsc.lora.merge_loras import FULL, merge_loras
from jmudsc.merging.result import MergeResult
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import Source

# Options that adapters are given in another way.
_OWN = ("axes", "check", "progress")


def is_adapter(recipe: Recipe, source: Source) -> bool:
    """Whether a model of a recipe is a LoRA adapter as PEFT writes it."""
    where = recipe.place(source.path)
    return not is_url(where) and (Path(where).expanduser() / CONFIG).is_file()


def folded(recipe: Recipe, source: Source, base: PyTree, *, wide: bool) -> PyTree:
    """Return the base with an adapter folded in, leaf by leaf when it is read.

    Args:
        recipe: the recipe.
        source: the adapter.
        base: lazy arrays.
        wide: whether the leaves that it changes are in float32, or wider if they are;
            the others are the base's.

    Raises:
        FileNotFoundError: if a file of the adapter is missing.
        ValueError: if the adapter, or what the recipe says of it, does not fit.
    """
    adapter, under = load_lora(recipe.place(source.path)), base
    if wide:
        under = cast(base, "float32", widen=True)
    axes = _axes(recipe)
    result = fold_lora(adapter, under, rename=_rename(source), axes=axes)
    found = paths.flatten(result.variables)
    own = {path: found[path] for path in result.changes}
    return paths.unflatten(base, paths.flatten(base) | own)


def merged_in_space(recipe: Recipe, request: Request) -> MergeResult:
    """Merge the adapters of a recipe in the space that it names.

    Args:
        recipe: the recipe.
        request: what it asks for of the base, which is there, and of models, which are
            not looked at.

    Raises:
        ValueError: if a model is no adapter, they are renamed in several ways, or
            whole models are needed.
    """
    check_space(recipe)
    common, default = request.common, Common()
    given = {
        name: getattr(common, name)
        for name in COMMON
        if name not in _OWN and getattr(common, name) != getattr(default, name)
    }
    given |= {"apply_fn": request.apply_fn} if request.apply_fn is not None else {}
    given |= {"batches": ()} if request.tasks is not None else {}
    return merge_loras(
        [load_lora(recipe.place(source.path)) for source in recipe.models],
        request.base,
        request.method,
        space=recipe.space,
        rename=_rename(recipe.models[0]),
        axes=common.axes,
        key=request.key,
        **request.options,
        **given,
    )


def check_base(recipe: Recipe, source: Source) -> None:
    """Check that there is something to fold an adapter into, and nothing to cut.

    Args:
        recipe: the recipe.
        source: an adapter.

    Raises:
        ValueError: if there is no base, or keys do not go with an adapter.
    """
    if recipe.base is None:
        raise ValueError(
            f"recipe: models: expected a base, into which the adapter {source.path} is "
            "folded, got none. Add base, the checkpoint that it was trained on."
        )
    if source == recipe.base:
        raise ValueError(
            f"recipe: base: expected the checkpoint that adapters were trained on, got "
            f"the adapter {source.path}. List it among models."
        )
    wrong = [
        key for key in ("subtree", "separator") if getattr(source, key) is not None
    ]
    wrong += [f"rename to null of {old}" for old, new in source.rename if new is None]
    if wrong:
        raise ValueError(
            f"recipe: models: expected path, rename and batches for the adapter "
            f"{source.path}, got {' and '.join(wrong)}. Leave them out."
        )


def check_space(recipe: Recipe) -> None:
    """Check that the models can be merged in the space that a recipe names.

    Args:
        recipe: the recipe.

    Raises:
        ValueError: if it is not `full`, and some are no adapters, or they are renamed
            in several ways.
    """
    if recipe.space == FULL:
        return
    whole = [x.path for x in recipe.models if not is_adapter(recipe, x)]
    if whole:
        raise ValueError(
            f"recipe: space: expected adapters as models for {recipe.space}, got "
            f"{paths.listed_in_line(whole)}. Leave space out to merge in full."
        )
    for source in recipe.models:
        check_base(recipe, source)
    if len({source.rename for source in recipe.models}) > 1:
        raise ValueError(
            f"recipe: space: expected one rename for all adapters for {recipe.space}, "
            "got several. Give all the same, or leave space out to merge in full."
        )


def fingerprint_at(recipe: Recipe, source: Source) -> str | None:
    """Return what changes when a model of a recipe is written anew.

    Args:
        recipe: the recipe.
        source: the model.

    Returns:
        A digest; None for a URL.
    """
    where = recipe.place(source.path)
    if not is_adapter(recipe, source):
        return fingerprint(where)
    folder = Path(where).expanduser()
    return fingerprint_of([folder / CONFIG, folder / WEIGHTS])


def _rename(source: Source) -> dict[str, str]:
    return {old: new for old, new in source.rename if new is not None}


def _axes(recipe: Recipe) -> Mapping[str, str]:
    options = recipe.options
    return options.common.axes if isinstance(options, FinetuneOptions) else {}
