"""Parts of a nested tree of dicts and lists, named by path."""

from collections.abc import Collection, Sequence

from jaxtyping import PyTree

from jmudsc.paths import listed, nearest

Route = tuple[str | int, ...]


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
    kept = dict.fromkeys(keys[0] for keys in routes)
    return {k: prune(tree[k], [r[1:] for r in routes if r[0] == k]) for k in kept}


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
    """Replace `{"value": leaf}` by `leaf` under the given top-level keys."""
    if not keys:
        return tree
    return {k: _unwrap(v) if k in keys else v for k, v in tree.items()}


def _route(tree: PyTree, name: str) -> Route | None:
    if not name:
        return ()
    if isinstance(tree, dict):
        keys = [k for k in tree if f"{name}/".startswith(f"{k}/")]
        steps = [(k, tree[k], name[len(k) + 1 :]) for k in sorted(keys, key=len)]
    elif isinstance(tree, list):
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
    return keys is not None and isinstance(at(tree, keys), (dict, list))


def _missing(where: str, tree: PyTree, name: str) -> str:
    """Say which of the keys beside the first wrong word of a name may be meant."""
    start = name
    while not _is_inner(tree, start):
        start = start.rpartition("/")[0]
    part = at(tree, _route(tree, start) or ())
    keys = [str(key) for key in (range(len(part)) if isinstance(part, list) else part)]
    under = f"{start}/" if start else ""
    close = nearest(name[len(under) :].partition("/")[0], keys)
    hint = f'; did you mean "{under}{close}"?' if close else ""
    return (
        f'{where}: has no subtree "{name}", needed one that is there{hint}:\n'
        f"{listed(under + key for key in keys)}"
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
        return {key: _unwrap(part) for key, part in tree.items()}
    return [_unwrap(part) for part in tree] if isinstance(tree, list) else tree
