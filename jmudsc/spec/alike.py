"""Alike: leaves that a model does not read, which move as others of the same shape do.

A moving average of the parameters, the moments of an optimizer: their axes are in the
order of the units that they belong to, and nothing in the model's program says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from jmudsc import paths
from jmudsc.spec.permutation_spec import labels_of, PermutationSpec, Site

# Pattern of leaf paths -> the paths of the leaves that they move like.
Alike = Mapping[str, str] | Iterable[tuple[str, str]]


def move_alike(where: str, spec: PermutationSpec, alike: Alike) -> PermutationSpec:
    """Give leaves that are not read the axes of those that they move like.

    They are permuted and merged from then on, but are no evidence of what a unit does.

    Args:
        where: the caller, named in the error.
        spec: the permutation spec.
        alike: pattern of leaf paths -> the paths of the leaves that they move like. In
            a pattern every `*` stands for any text, `/` included; the same text takes
            the place of the same `*` of the other path. The first pattern that a leaf
            matches counts.

    Returns:
        The spec, with these leaves in `PermutationSpec.alike`.

    Raises:
        ValueError: listing all that cannot be: patterns that match no leaf, leaves that
            the model reads itself, that move like no leaf, like one that is not read
            either, or like one of another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jmudsc import infer_spec
        >>> def apply_fn(variables, x):
        ...     weights = variables["params"]
        ...     return jax.nn.relu(x @ weights["in"]) @ weights["out"]
        >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
        >>> variables = {"ema": params, "params": params}
        >>> spec = infer_spec(apply_fn, variables, jnp.ones((4, 3)))
        >>> str(move_alike("docs", spec, {"ema/*": "params/*"}).axes["ema/in"][1])
        'P_0'
    """
    pairs = list(dict(alike).items())
    found, problems = _found(spec, pairs)
    problems += [
        f"{path}: {problem}"
        for path, other in found.items()
        if (problem := _problem(spec, path, other))
    ]
    if problems:
        raise ValueError(
            f"{where}: alike: expected leaves that apply_fn does not read, each to "
            "move like a leaf of its shape that it reads, got others:\n"
            f"{paths.listed(problems, most=30)}\nCorrect the patterns."
        )
    return with_alike(spec, found)


def with_alike(spec: PermutationSpec, alike: Mapping[str, str]) -> PermutationSpec:
    """Give leaves the axes of others, without a check.

    Args:
        spec: the permutation spec.
        alike: leaf path -> that of the leaf that it moves like.

    Returns:
        The spec.
    """
    if not alike:
        return spec
    sites = {
        Site(path, number): Site(other, number)
        for path, other in alike.items()
        for number in range(len(spec.axes[other]))
    }
    axes = {path: spec.axes[alike.get(path, path)] for path in spec.axes}
    fixed = {site: why for site, why in spec.fixed.items() if site not in sites}
    fixed |= {s: spec.fixed[like] for s, like in sites.items() if like in spec.fixed}
    own = [site for site, like in sites.items() if like in spec.consumed]
    labels = labels_of(
        axes,
        {name: label.size for name, label in spec.labels.items()},
        {name: label.parents for name, label in spec.labels.items()},
        {name: label.fixed for name, label in spec.labels.items()},
    )
    return replace(
        spec,
        axes=axes,
        labels=labels,
        fixed=fixed,
        consumed=spec.consumed.union(own),
        alike={**spec.alike, **alike},
    )


def left_behind(spec: PermutationSpec) -> list[str]:
    """Return the leaves that are not read and stay in place while others may move.

    Args:
        spec: the permutation spec.

    Returns:
        The paths of leaves with an axis of several positions and without labels; none
        if no label may be permuted.
    """
    if all(label.fixed for label in spec.labels.values()):
        return []
    return [
        path
        for path, axes in spec.axes.items()
        if path in spec.unread - spec.alike.keys()
        and any(axis.size > 1 for axis in axes)
        and not any(axis.labels() for axis in axes)
    ]


def _found(
    spec: PermutationSpec, pairs: Iterable[tuple[str, str]]
) -> tuple[dict[str, str], list[str]]:
    """Find the leaves that patterns match, and the patterns that match none."""
    found: dict[str, str] = {}
    problems = []
    for pattern, other in pairs:
        ours, theirs = pattern.count("*"), other.count("*")
        if ours != theirs:
            problems.append(f'"{pattern}" has {ours} "*" and "{other}" {theirs}')
            continue
        matched = paths.starred(pattern, {path: path for path in spec.axes})
        for path, texts in matched.items():
            found.setdefault(path, paths.filled(other, texts))
        if not matched:
            hint = paths.did_you_mean(pattern, spec.axes)
            problems.append(f'"{pattern}" matches no leaf{hint}')
    return found, problems


def _problem(spec: PermutationSpec, path: str, other: str) -> str | None:
    """Say why a leaf cannot move like another; None if it can."""
    if path not in spec.unread:
        return "apply_fn reads it, so it moves by itself"
    if other not in spec.axes:
        hint = paths.did_you_mean(other, spec.axes)
        return f'there is no leaf "{other}" to move like{hint}'
    if other in spec.unread:
        return f"apply_fn does not read {other} either"
    ours, theirs = (tuple(a.size for a in spec.axes[p]) for p in (path, other))
    if ours != theirs:
        return f"its shape is {ours}, that of {other} is {theirs}"
    return None
