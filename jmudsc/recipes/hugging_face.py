"""Hugging Face: what a recipe whose models are such directories does besides merging.

Tied heads, vocabularies, and weights that are not as torch has them are known from the
files beside the parameters. The result is written as such a directory too.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints.formats import ending_of, find, HUGGING_FACE
from jmudsc.checkpoints.hugging_face import (
    check_donor,
    config_of,
    HuggingFace,
    is_model,
    transposed_axes,
)
from jmudsc.checkpoints.load import Stored
from jmudsc.lazy import present
from jmudsc.paths import listed
from jmudsc.recipes.families import FINETUNED
from jmudsc.recipes.lora_models import is_adapter
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import Source

_log = logging.getLogger(__name__)

_HEAD = "lm_head.weight"
_TABLES = ("model.embed_tokens.weight", "transformer.wte.weight", "wte.weight")


def written_like(recipe: Recipe, donor: Stored) -> HuggingFace | None:
    """Return how to write the result as the directory of a Hugging Face model.

    Args:
        recipe: the recipe.
        donor: the model that the result is stored like, as it was opened.

    Returns:
        How; None if the donor is no such directory, only some of its leaves are taken
        or under other names, the output is a file, or models are matched.

    Raises:
        ValueError: if the tokenizer is from no directory.
    """
    source = recipe.donor
    is_part = source.subtree is not None or source.rename
    is_theirs = donor.format is HUGGING_FACE and not is_part
    if not is_theirs or ending_of(recipe.output) or recipe.family is not FINETUNED:
        return None
    tokenizer = None
    if recipe.tokenizer is not None:
        tokenizer = recipe.place(recipe.tokenizer)
    like = HuggingFace(
        find(recipe.place(source.path)),  # of a URL the local copy
        shard_size=recipe.shard_size,
        tokenizer=tokenizer,
    )
    check_donor(recipe.output, like)
    return like


def fitted(recipe: Recipe, trees: Sequence[PyTree]) -> list[PyTree]:
    """Return the leaves of Hugging Face models such that they can be merged.

    A head that is stored in some models, where it is equal to the table of tokens, and
    not in others, which use the table for it, is left out of all.

    Args:
        recipe: the recipe.
        trees: the variables of each of its sources, or their shapes.

    Returns:
        One tree each; those of other formats as they are.

    Raises:
        ValueError: if a token has another number in one of the models than in others,
            or only some have a head of their own.
    """
    places = _places(recipe)
    if places is None:
        return list(trees)
    check_vocabularies(places)
    return _without_tied_heads(places, trees)


def axes_of(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """Return the letters of leaves that are (in, out) although they are torch's.

    Args:
        recipe: the recipe.
        names: of the leaves of its models.
    """
    donor = _directory(recipe, recipe.donor)
    return {} if donor is None else transposed_axes(config_of(donor), names)


def vocabulary_of(directory: Path) -> dict[str, int] | None:
    """Return the number of every token of a model, None if that is not told.

    Args:
        directory: of the model, with `tokenizer.json`.

    Raises:
        ValueError: if that is no JSON of a tokenizer.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        given = content["model"]["vocab"]
        if isinstance(given, list):  # of pieces and their scores
            given = {piece: number for number, (piece, _) in enumerate(given)}
        added = content.get("added_tokens") or []
        return {**given, **{token["content"]: token["id"] for token in added}}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{file}: expected JSON of a tokenizer with model and vocab, got something "
            "else. Copy it again."
        ) from None


def check_vocabularies(places: Sequence[Path]) -> None:
    """Check that no row of a table of tokens stands for two of them.

    A model may have tokens that others have not, after theirs.

    Args:
        places: the directories of the models.

    Raises:
        ValueError: listing the tokens that have two numbers, or numbers that have two
            tokens.
    """
    known: dict[str, tuple[int, Path]] = {}
    rows: dict[int, tuple[str, Path]] = {}
    lines: dict[str, str] = {}
    for where in places:
        for token, number in (vocabulary_of(where) or {}).items():
            first, its = known.setdefault(token, (number, where))
            other, owner = rows.setdefault(number, (token, where))
            if first != number:
                lines.setdefault(
                    token,
                    f"{token!r}: {first} in {its.name}, {number} in {where.name}",
                )
            elif other != token:
                lines.setdefault(
                    token,
                    f"{number}: {other!r} in {owner.name}, {token!r} in {where.name}",
                )
    if lines:
        raise ValueError(
            f"recipe: models: expected one vocabulary, got {len(lines)} tokens that "
            "differ, so that rows of different tokens would be merged. Bring the "
            f"models to one vocabulary first:\n{listed(lines.values())}"
        )


def _without_tied_heads(
    places: Sequence[Path], trees: Sequence[Mapping[str, Any]]
) -> list[Any]:
    having = [n for n, tree in enumerate(trees) if _HEAD in tree]
    if len(having) in (0, len(trees)):
        return list(trees)
    own = [places[n].name for n in having if not _is_tied(trees[n])]
    if own:
        without = [each.name for n, each in enumerate(places) if n not in having]
        raise ValueError(
            f"recipe: models: expected a head in all models, or in none of its own, "
            f"got one in {', '.join(own)} and none in {', '.join(without)}, which use "
            "the table of tokens for it. Store both in all models."
        )
    _log.warning(
        "recipe: %s is left out: in all models it is the table of tokens. It is stored "
        "only in %s.",
        _HEAD,
        ", ".join(places[n].name for n in having),
    )
    return [{n: x for n, x in tree.items() if n != _HEAD} for tree in trees]


def _is_tied(tree: Mapping[str, Any]) -> bool:
    """Whether the head of a model is its table of tokens, bit for bit.

    Where only shapes are known it is taken to be.
    """
    if not hasattr(tree[_HEAD], "__array__"):
        return True
    head = np.asarray(present(tree[_HEAD]))
    tables = [np.asarray(present(tree[name])) for name in _TABLES if name in tree]
    return any(
        table.dtype == head.dtype and np.array_equal(table, head) for table in tables
    )


def _places(recipe: Recipe) -> list[Path] | None:
    """Return the directories of all models; None if not all are of Hugging Face.

    An adapter has the vocabulary and the head of its base.
    """
    found = [
        _directory(recipe, recipe.donor if is_adapter(recipe, source) else source)
        for source in recipe.sources
    ]
    return None if None in found else [each for each in found if each is not None]


def _directory(recipe: Recipe, source: Source) -> Path | None:
    """Return the directory of a model whose leaves have the names they have there."""
    if "://" in source.path or source.subtree is not None or source.rename:
        return None
    where = Path(recipe.place(source.path)).expanduser()
    return where if is_model(where) and source.separator in (None, "") else None
