"""Renaming: give the leaves of a stored tree the names that a model has for them."""

from collections.abc import Mapping

from jaxtyping import PyTree

from jmudsc.checkpoints.structure import Route, routes_of
from jmudsc.checkpoints.subtrees import nested, separator_hint
from jmudsc.paths import did_you_mean, filled, flatten, listed, shared, starred

# Pattern of leaf paths -> the new path, or None to leave the leaves out.
Rename = Mapping[str, str | None]


def check_rename(rename: Rename) -> list[str]:
    """Return the rules whose new path has not as many `*` as the pattern.

    Example:
        >>> check_rename({"*/weight": "kernel"})
        ['"*/weight" has 1 "*" and "kernel" 0']
    """
    return [
        f'"{old}" has {old.count("*")} "*" and "{new}" {new.count("*")}'
        for old, new in rename.items()
        if new is not None and old.count("*") != new.count("*")
    ]


def check_stars(where: str, rename: Rename) -> None:
    """Check that every new path has as many `*` as its pattern.

    Args:
        where: what is renamed, for the error.
        rename: pattern -> the new path, or None.

    Raises:
        ValueError: listing the rules of which it has not.
    """
    if problems := check_rename(rename):
        raise ValueError(
            f'{where}: expected as many "*" in a new path as in its pattern, got '
            f"another number in {len(problems)} of {len(rename)} rules. Correct "
            f"rename:\n{listed(problems)}"
        )


def renamed(where: str, tree: PyTree, rename: Rename) -> PyTree:
    """Rename leaves by rules.

    The rules are taken one after the other, each on all names as those before it left
    them. In a pattern every `*` stands for any text, `/` included, the first for as
    much as it can; the same text takes the place of the same `*` of the new path. New
    paths are split at `/`.

    Args:
        where: what the tree is of, for the error.
        tree: nested dicts and lists.
        rename: pattern of a whole leaf path -> the new path, or None to leave out the
            leaves that match.

    Returns:
        The tree, without what was left out.

    Raises:
        ValueError: if a pattern and its new path differ in `*`, or listing the patterns
            that match no leaf, or the names that would be of two leaves.

    Example:
        >>> rules = {"step": None, "encoder/*": "params/*", "*/weight": "*/kernel"}
        >>> renamed("run", {"encoder": {"weight": 1}, "step": 2}, rules)
        {'params': {'kernel': 1}}
    """
    check_stars(where, rename)
    names = {path: path for path in flatten(tree)}
    unmatched = []
    for old, new in rename.items():
        found = starred(old, names)
        if not found:
            unmatched.append(f'"{old}"{did_you_mean(old, names.values())}')
        for path, texts in found.items():
            if new is None:
                del names[path]
            else:
                names[path] = filled(new, texts)
    if unmatched:
        raise ValueError(
            f"{where}: expected patterns that match a leaf, got {len(unmatched)} of "
            f"{len(rename)} in rename that match none. Give whole leaf paths, as the "
            f"rules before leave them:\n{listed(unmatched)}"
            f"{separator_hint(names.values())}"
        )
    routes, leaves = routes_of(tree), flatten(tree)
    moved = {
        path: routes[path] if name == path else tuple(name.split("/"))
        for path, name in names.items()
    }
    _check_distinct(where, moved)
    kept = [(keys, leaves[path]) for path, keys in moved.items()]
    return nested(where, kept, like=routes.values())


def split(where: str, tree: PyTree, separator: str) -> PyTree:
    """Split the keys of a tree at a separator, to a deeper tree.

    Args:
        where: what the tree is of, for the error.
        tree: nested dicts and lists.
        separator: what to split at; nothing to leave the tree as it is.

    Returns:
        The tree.

    Raises:
        ValueError: listing the names that would be of two leaves.

    Example:
        >>> split("run", {"params.a.kernel": 1, "params.b": 2}, ".")
        {'params': {'a': {'kernel': 1}, 'b': 2}}
    """
    routes, leaves = routes_of(tree), flatten(tree)
    if not separator or not any(separator in path for path in routes):
        return tree
    pieces = {path: _pieces(keys, separator) for path, keys in routes.items()}
    _check_distinct(where, pieces)
    return nested(where, [(keys, leaves[path]) for path, keys in pieces.items()])


def _pieces(keys: Route, separator: str) -> Route:
    return tuple(
        piece
        for key in keys
        for piece in (key.split(separator) if isinstance(key, str) else [key])
    )


def _check_distinct(where: str, routes: Mapping[str, Route]) -> None:
    names = {path: "/".join(map(str, keys)) for path, keys in routes.items()}
    twice = [f"{x}: {' and '.join(paths)}" for x, paths in shared(names).items()]
    if twice:
        raise ValueError(
            f"{where}: expected one leaf for each name, got several for {len(twice)} "
            f"of {len(set(names.values()))}. Correct rename or separator:\n"
            f"{listed(twice)}"
        )
