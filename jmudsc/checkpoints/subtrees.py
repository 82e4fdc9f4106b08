"""Parts of a nested tree of dicts and lists, named by path."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from jmudsc.checkpoints.structure import Position, Route
from jmudsc.paths import flatten, listed, nearest


def route(where: str, tree: PyTree, name: str) -> Route:
    """Return the keys that lead to the part of a tree called `name`.

    Args:
        where: what the tree is of, for the error.
        tree: nested dicts and lists.
        name: keys and list positions joined by `"/"`; a key may contain `"/"` itself.

    Raises:
        ValueError: if there is no such part.

    Example:
        >>> route("run", {"params": [{"mlp/w": 1}]}, "params/0/mlp/w")
        ('params', 0, 'mlp/w')
    """
    found = _route(tree, name)
    if found is None:
        raise ValueError(_missing(where, tree, name))
    return found


def at(tree: PyTree, keys: Route) -> PyTree:
    """Return the part of a tree that a route leads to."""
    for key in keys:
        tree = tree[key]
    return tree


def prune(tree: PyTree, routes: Sequence[Route]) -> PyTree:
    """Return a tree without what no route leads to; lists stay whole.

    Example:
        >>> prune({"a": {"b": 1, "c": 2}, "d": 3}, [("a", "c")])
        {'a': {'c': 2}}
    """
    if not isinstance(tree, dict) or not all(routes):
        return tree
    below: dict[str | int, list[Route]] = {}
    for key, *rest in routes:
        below.setdefault(key, []).append(tuple(rest))
    return {key: prune(tree[key], rest) for key, rest in below.items()}


def nested(
    where: str, leaves: Sequence[tuple[Route, Any]], like: Iterable[Route] = ()
) -> PyTree:
    """Put leaves into nested dicts and lists.

    Args:
        where: what the leaves are of, for the error.
        leaves: keys and leaf, every route once.
        like: further routes, which only tell where there are lists and numbers.

    Returns:
        The tree: a list where the keys are the numbers from 0 on, if a route has one as
        a position; a dict with numbers where they are numbers, if a route has one as a
        number; a dict with text elsewhere.

    Raises:
        ValueError: listing the leaves that lie inside another leaf.

    Example:
        >>> nested("x", [(("a", "b"), 1), (("c", Position(0)), 2), (("d", 7), 3)])
        {'a': {'b': 1}, 'c': [2], 'd': {7: 3}}
    """
    tree: dict[str, Any] = {}
    inside = []
    kinds: dict[type, set[tuple[str, ...]]] = {str: set(), int: set(), Position: set()}
    for keys in (*(keys for keys, _ in leaves), *like):
        for n, key in enumerate(keys):
            kinds[type(key)].add(tuple(map(str, keys[:n])))
    ends = {tuple(map(str, keys)) for keys, _ in leaves}
    for keys, leaf in leaves:
        names = tuple(map(str, keys))
        above = [names[:n] for n in range(1, len(names)) if names[:n] in ends]
        if above:
            inside.append(f"{'/'.join(names)} in {'/'.join(above[0])}")
            continue
        place = tree
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = leaf
    if inside:
        raise ValueError(
            f"{where}: expected names that nest, got {len(inside)} of {len(leaves)} "
            "leaves inside another leaf. Rename some, or keep names whole with "
            f'separator="":\n{listed(inside)}'
        )
    return _with_numbers(tree, (), kinds)


def chosen_routes(
    where: str, tree: PyTree, subtree: str | Sequence[str] | None
) -> dict[str, Route]:
    """Return the keys to each part of a tree that is asked for, by its name.

    Args:
        where: what the tree is of, for the error.
        tree: nested dicts and lists.
        subtree: the name of one part, which is then called nothing; of several, each
            called by its last word; None for all.

    Raises:
        ValueError: if there is no such part, or two would have one name.
    """
    if subtree is None:
        return {"": ()}
    if isinstance(subtree, str):
        return {"": route(where, tree, subtree)}
    routes = [route(where, tree, name) for name in subtree]
    named = {str(keys[-1]) if keys else "": keys for keys in routes}
    if len(named) < len(routes):
        raise ValueError(
            "subtree: expected parts that end in different words, got "
            f"{list(subtree)}. Load them one at a time."
        )
    return named


def longer(names: Iterable[str], most: int) -> list[str]:
    """Return the names that take more than so many bytes."""
    return [x for x in names if len(x.encode(errors="replace")) > most]


def separator_hint(names: Collection[str]) -> str:
    """Return advice where names look as if they were joined by dots, or nothing."""
    dotted = any("." in n for n in names) and not any("/" in n for n in names)
    return '\nNames have "." here and no "/"; pass separator=".".' if dotted else ""


def nnx_keys(tree: PyTree) -> set[str]:
    """Return the top-level keys under which a saved tree holds NNX variables.

    An NNX state that was saved as it is has `{"value": leaf}` where a plain tree has
    `leaf`. That is all that tells it from a plain tree, so either the whole tree must
    look so, or a part (the `params` of a training state, say) at least two levels deep.
    """
    if not isinstance(tree, dict):
        return set()
    if _is_wrapped(tree):
        return set(tree)
    return {k for k, v in tree.items() if not _is_variable(v) and _is_wrapped(v)}


def unwrap(tree: PyTree, keys: Collection[str]) -> PyTree:
    """Replace `{"value": leaf}` by `leaf` under the given top-level keys.

    What has the numbers as keys there comes from a list of modules, of which orbax
    keeps the text: the order would be 0, 1, 10, 2.
    """
    if not keys:
        return tree
    parts = {k: _unwrap(v) if k in keys else v for k, v in tree.items()}
    return numbered(parts) if set(keys) == set(tree) else parts


def _with_numbers(
    tree: Mapping[str, Any],
    here: tuple[str, ...],
    kinds: Mapping[type, Collection[tuple[str, ...]]],
) -> PyTree:
    parts = {
        name: _with_numbers(part, (*here, name), kinds)
        if isinstance(part, dict)
        else part
        for name, part in tree.items()
    }
    positions = [str(n) for n in range(len(parts))]
    if here in kinds[Position] and set(positions) == parts.keys():
        return [parts[name] for name in positions]
    return numbered(parts) if here in kinds[int] else parts


def numbered(parts: Mapping[str, PyTree]) -> dict[Any, PyTree]:
    """Return a dict with numbers as keys if all are the text of one, else as it is."""
    if all(name.isdecimal() and str(int(name)) == name for name in parts):
        return {int(name): part for name, part in parts.items()}
    return dict(parts)


def _route(tree: PyTree, name: str) -> Route | None:
    if not name:
        return ()
    if isinstance(tree, dict):
        keys = [k for k in tree if f"{name}/".startswith(f"{k}/")]
        keys = sorted(keys, key=lambda k: len(str(k)))
        steps = [(k, tree[k], name[len(str(k)) + 1 :]) for k in keys]
    elif isinstance(tree, (list, tuple)):
        head, _, rest = name.partition("/")
        is_position = head.isdecimal() and int(head) < len(tree)
        steps = [(int(head), tree[int(head)], rest)] if is_position else []
    else:
        steps = []
    for key, part, rest in reversed(steps):
        below = _route(part, rest)
        if below is not None:
            return (key, *below)
    return None


def _is_inner(tree: PyTree, name: str) -> bool:
    keys = _route(tree, name)
    return keys is not None and isinstance(at(tree, keys), (dict, list, tuple))


def _missing(where: str, tree: PyTree, name: str) -> str:
    """Say which of the keys beside the first wrong word of a name may be meant."""
    start = name
    while not _is_inner(tree, start):
        start = start.rpartition("/")[0]
    part = at(tree, _route(tree, start) or ())
    keys = [str(key) for key in (part if isinstance(part, dict) else range(len(part)))]
    under = f"{start}/" if start else ""
    close = nearest(name[len(under) :].partition("/")[0], keys)
    hint = f'; did you mean "{under}{close}"?' if close else "."
    return (
        f'{where}: expected a subtree that is there, got "{name}"{hint} Give one of:\n'
        f"{listed(under + key for key in keys)}{separator_hint(flatten(tree))}"
    )


def _is_wrapped(tree: PyTree) -> bool:
    if _is_variable(tree):
        return True
    if isinstance(tree, dict):
        return all(_is_wrapped(part) for part in tree.values())
    return isinstance(tree, list) and all(_is_wrapped(part) for part in tree)


def _is_variable(tree: PyTree) -> bool:
    is_pair = isinstance(tree, dict) and set(tree) == {"value"}
    return is_pair and not isinstance(tree["value"], (dict, list))


def _unwrap(tree: PyTree) -> PyTree:
    if _is_variable(tree):
        return tree["value"]
    if isinstance(tree, dict):
        return numbered({key: _unwrap(part) for key, part in tree.items()})
    return [_unwrap(part) for part in tree] if isinstance(tree, list) else tree
