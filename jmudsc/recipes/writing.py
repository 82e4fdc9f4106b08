"""Writing: each network of a merge as its donor is stored, with card and record."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax

from jmudsc.checkpoints.contents import contents_digest
from jmudsc.checkpoints.filling import Filling
from jmudsc.checkpoints.hugging_face import HuggingFace
from jmudsc.checkpoints.load import Stored, stored_as
from jmudsc.checkpoints.provenance import Record
from jmudsc.checkpoints.save import save_with_record
from jmudsc.checkpoints.shares import save_by_shares
from jmudsc.checkpoints.spread import is_spread, save_spread
from jmudsc.checkpoints.urls import AnyPath
from jmudsc.merging.model_card import model_card, Parent, parent_at
from jmudsc.merging.result import MergeResult
from jmudsc.merging.save_result import format_like, record_of
from jmudsc.processes import is_first
from jmudsc.progress import Progress
from jmudsc.recipes.dump import dump_recipe
from jmudsc.recipes.schema import Recipe


@dataclass(frozen=True)
class Writing:
    """How what came of a recipe is written.

    Attributes:
        recipe: the recipe.
        donor: what each network is stored like.
        like: how it is written as the directory of a Hugging Face model; None if not.
        overwrite: whether an earlier merge may be replaced.
        filling: how leaves that are merged while they are written are kept.
        parents: what was merged, the base last.
    """

    recipe: Recipe
    donor: Stored
    like: HuggingFace | None
    overwrite: bool
    filling: Filling | None
    parents: Sequence[Parent]


def parents_of(recipe: Recipe, progress: Progress | None) -> list[Parent]:
    """Tell what a recipe merges: the models, and the base after them.

    Args:
        recipe: the recipe.
        progress: called with the stage.

    Returns:
        One for each, with its digest, for which all of it is read once, several side
        by side. In several processes only the first has them, which is the one that
        writes them.
    """
    places = [recipe.place(source.path) for source in recipe.sources]
    digests: list[str | None] = [None] * len(places)
    if is_first():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for number, digest in enumerate(pool.map(contents_digest, places)):
                digests[number] = digest
                if progress:
                    progress("digesting models", number + 1, len(places))
    return [
        parent_at(place, source.path, digest)
        for place, source, digest in zip(places, recipe.sources, digests, strict=True)
    ]


def write_networks(
    writing: Writing, result: MergeResult, places: Sequence[AnyPath], text: str
) -> None:
    """Write each network as its donor is, with card, report, recipe and spec.

    Args:
        writing: how.
        result: the merge.
        places: where to write each network.
        text: the report.
    """
    notes = _notes(writing.recipe, result, text)
    networks = result.networks or [result.variables]
    parents = {"parents": [each.plain for each in writing.parents]}
    for where, network in zip(places, networks, strict=True):
        variables = stored_as(writing.donor, network, where)
        own = dataclasses.replace(result, variables=variables)
        kind, config = None, None
        if writing.like is not None:
            kind, config = format_like(where, own, writing.like)
        card = model_card(own, writing.parents, config, notes, where)
        record = record_of(result, {}, notes)
        record = Record({**record.content, **parents}, record.arrays, notes, card)
        if is_spread(variables):
            save_spread(where, variables, record, overwrite=writing.overwrite)
            continue
        if jax.process_count() > 1 and writing.filling is not None:
            save_by_shares(
                where,
                variables,
                record,
                writing.filling,
                overwrite=writing.overwrite,
                kind=kind,
            )
            continue
        save_with_record(
            where,
            variables,
            record,
            overwrite=writing.overwrite,
            kind=kind,
            filling=writing.filling,
        )


def _notes(recipe: Recipe, result: MergeResult, text: str) -> dict[str, str]:
    """Return the texts that lie beside a merge."""
    told = f"# Paths and modules are relative to {recipe.folder}\n{dump_recipe(recipe)}"
    notes = {"report.md": text, "recipe.yaml": told}
    if result.spec.labels:  # in fine-tunes no unit moves
        notes["spec.txt"] = f"{result.spec}\n"
    if recipe.mergekit is not None:
        notes["mergekit.yaml"] = recipe.mergekit
    return notes
