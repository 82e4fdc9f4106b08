"""Verify: leaves and files of a checkpoint are those that its record tells of."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc.checkpoints import provenance
from jmudsc.checkpoints.binding import resized
from jmudsc.checkpoints.structure import built, Position, Route
from jmudsc.checkpoints.subtrees import nested, unwrap
from jmudsc.lazy import Fetch, LazyArray
from jmudsc.paths import flatten, listed


def recorded(
    place: os.PathLike[str], tree: PyTree[LazyArray], content: Mapping[str, Any]
) -> PyTree[LazyArray]:
    """Check the leaves of a tree by a record, and build the tree that was saved.

    Args:
        place: the checkpoint.
        tree: its arrays, as they are stored.
        content: its record.

    Returns:
        The tree, whose arrays are compared with their digests when they are read.

    Raises:
        ValueError: listing the leaves that are missing, or not of the record, or the
            files that have another size.
    """
    where = str(place)
    _check_names(where, flatten(tree), content["digests"])
    check_files(place, content, resized)
    tree = _verified(where, tree, content["digests"])
    if "structure" in content:
        return built(content["structure"], flatten(tree))
    if keys := content.get("keys"):  # of the first format of records, as below
        return nested(where, [(_route(keys[n]), x) for n, x in flatten(tree).items()])
    return unwrap(tree, set(tree) if content["nnx"] else ())


def _route(keys: Sequence[str | int]) -> Route:
    return tuple(Position(x) if isinstance(x, int) else x for x in keys)


def _check_names(
    where: str, leaves: Mapping[str, Any], digests: Mapping[str, str]
) -> None:
    missing = [f"{x}: is missing" for x in digests if x not in leaves]
    others = [f"{x}: is not of it" for x in leaves if x not in digests]
    if missing or others:
        wrong = [*missing, *others]
        differ = "differs" if len(wrong) == 1 else "differ"
        raise ValueError(
            f"{where}: expected all leaves that jmudsc saved and no others, got "
            f"{len(wrong)} that {differ}. Copy the checkpoint again:\n{listed(wrong)}"
        )


def check_files(
    place: os.PathLike[str],
    content: Mapping[str, Any],
    differing: Callable[[os.PathLike[str], Mapping[str, Any]], list[str]],
) -> None:
    """Check the files of a checkpoint by its record; a card may be edited.

    Args:
        place: the checkpoint.
        content: its record.
        differing: returns those that are not as they were saved.

    Raises:
        ValueError: listing them.
    """
    if wrong := [x for x in differing(place, content) if x != provenance.CARD]:
        raise ValueError(
            f"{place}: expected all files as jmudsc saved them, got {len(wrong)} of "
            f"{len(content['files'])} changed. Copy the checkpoint again:\n"
            f"{listed(wrong)}"
        )


def _verified(
    where: str, tree: PyTree[LazyArray], digests: Mapping[str, str]
) -> PyTree[LazyArray]:
    """Have arrays compared with the digests of a record when they are read."""
    leaves = flatten(tree)
    checked: dict[Fetch, Fetch] = {}

    def checking(fetch: Fetch) -> Fetch:
        def read(names: Sequence[str]) -> Mapping[str, Any]:
            found = fetch(names)
            _check_unchanged(where, leaves, found, digests)
            return found

        return checked.setdefault(fetch, read)

    def whole(leaf: LazyArray) -> LazyArray:
        # A digest is of all of an array, so none is read by parts.
        return replace(leaf, fetch=checking(leaf.fetch), fetch_spread=None, part=None)

    return jax.tree.map(whole, tree)


def _check_unchanged(
    where: str,
    leaves: Mapping[str, Any],
    found: Mapping[str, Any],
    digests: Mapping[str, str],
) -> None:
    seen = {name: provenance.leaf_digest(leaf) for name, leaf in found.items()}
    unread = leaves.keys() - found.keys()
    expected = {name: x for name, x in digests.items() if name not in unread}
    if wrong := provenance.changed(seen, expected):
        raise ValueError(
            f"{where}: expected all leaves as jmudsc saved them, got {len(wrong)} of "
            f"{len(expected)} changed. Copy the checkpoint again:\n{listed(wrong)}"
        )
