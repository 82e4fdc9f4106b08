"""Leaf paths: the `"/"`-joined names by which every other module speaks of leaves."""

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import jax
from jaxtyping import PyTree

Thing = TypeVar("Thing", bound=Hashable)

# A name of more characters is like no other.
_LONGEST = 300


def flatten(tree: PyTree) -> dict[str, Any]:
    """Name every leaf of a tree by its path, in the tree's own order.

    Args:
        tree: any pytree; a linen dict, an NNX state, an Equinox module.

    Returns:
        `{"params/Dense_0/kernel": leaf, ...}`.

    Raises:
        ValueError: if two leaves would share a path.

    Example:
        >>> flatten({"params": {"Dense_0": {"bias": 1, "kernel": 2}}})
        {'params/Dense_0/bias': 1, 'params/Dense_0/kernel': 2}
    """
    with_keys, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {}
    for key_path, leaf in with_keys:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if path in leaves:
            raise ValueError(
                f'tree: expected a path of its own for every leaf, got "{path}" twice. '
                'Rename one of the two; a key that itself contains "/" can cause this.'
            )
        leaves[path] = leaf
    return leaves


def unflatten(like: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """Rebuild a tree with the structure of `like` from leaves named by path.

    Args:
        like: the tree whose structure and paths are taken.
        leaves: a value for every path of `like`.

    Returns:
        A tree of the structure of `like`.
    """
    structure = jax.tree.structure(like)
    return jax.tree.unflatten(structure, [leaves[path] for path in flatten(like)])


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` most like `name`, or None if none is alike.

    Example:
        >>> nearest("params/Dense_0/kernal", ["params/Dense_0/kernel", "step"])
        'params/Dense_0/kernel'
    """
    if len(name) > _LONGEST:  # comparing takes the square of it
        return None
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return close[0] if close else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `'; did you mean "..."?'` for the nearest of `names`, or nothing."""
    close = nearest(name, names)
    return f'; did you mean "{close}"?' if close else ""


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches any of some shell patterns, in which `*` matches `/` too.

    Example:
        >>> matches("params/Dense_0/kernel", ["*/kernel"])
        True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def starred(pattern: str, names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return for every name that matches a pattern what its `*` stand for.

    Args:
        pattern: a pattern of whole names, in which every `*` stands for any text, the
            first for as much as it can.
        names: key -> name.

    Returns:
        Key -> the texts.

    Example:
        >>> starred("ema/*", {"a": "ema/kernel", "b": "params/kernel"})
        {'a': ('kernel',)}
    """
    regex = re.compile("(.*)".join(map(re.escape, pattern.split("*"))), re.DOTALL)
    found = {key: regex.fullmatch(name) for key, name in names.items()}
    return {key: match.groups() for key, match in found.items() if match}


def filled(pattern: str, texts: Sequence[str]) -> str:
    """Put texts in the place of the `*` of a pattern, one for each.

    Example:
        >>> filled("params/*", ["kernel"])
        'params/kernel'
    """
    first, *rest = pattern.split("*")
    return first + "".join(x for pair in zip(texts, rest, strict=True) for x in pair)


def check_patterns(
    where: str, patterns: Iterable[str], names: Iterable[str], kind: str, advice: str
) -> None:
    """Check that every pattern matches a name.

    Args:
        where: the caller, named in the error.
        patterns: shell patterns.
        names: what there is.
        kind: what the names are of, `"leaf"`.
        advice: what to do.

    Raises:
        ValueError: listing the patterns that match no name, with the nearest one.
    """
    patterns, names = list(patterns), list(names)
    unmatched = [
        f'"{pattern}"{did_you_mean(pattern, names)}'
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    if unmatched:
        raise ValueError(
            f"{where}: expected every pattern to match a {kind}, got some that match "
            f"none:\n{listed(unmatched)}\n{advice}"
        )


def shared(names: Mapping[str, Thing]) -> dict[Thing, list[str]]:
    """Return what several names stand for.

    Args:
        names: name -> what it stands for.

    Returns:
        Whatever has more than one name -> all its names.

    Example:
        >>> shared({"a": 1, "b": 2, "c": 1})
        {1: ['a', 'c']}
    """
    found: dict[Thing, list[str]] = {}
    for name, thing in names.items():
        found.setdefault(thing, []).append(name)
    return {thing: each for thing, each in found.items() if len(each) > 1}


def listed(lines: Iterable[str], most: int = 10) -> str:
    """Join lines for an error: the first `most`, one per line, then a count.

    Example:
        >>> print(listed(["a", "b", "c"], most=2))
          a
          b
          and 1 more
    """
    lines = list(lines)
    shown = [f"  {line}" for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"  and {len(lines) - most} more")
    return "\n".join(shown)


def listed_in_line(names: Iterable[Any], most: int = 3) -> str:
    """Join names for an error in one line: the first `most`, then a count.

    Example:
        >>> listed_in_line(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    names = [cut(str(name), 40) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def cut(text: str, most: int = 200) -> str:
    """Return a text for an error, its middle left out if it is long.

    Example:
        >>> cut("a" * 3000, most=30)
        'aaaaaaaaaaaaaaa... (3000 characters)'
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}... ({len(text)} characters)"


def plural(count: int, noun: str, several: str | None = None) -> str:
    """Write how many of something there are.

    Args:
        count: how many.
        noun: what one of them is called.
        several: what several are called; the noun and an s if None.

    Example:
        >>> plural(1, "label"), plural(2, "label"), plural(0, "leaf", "leaves")
        ('1 label', '2 labels', '0 leaves')
    """
    return f"{count} {noun if count == 1 else several or f'{noun}s'}"
