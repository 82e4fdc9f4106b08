"""Freeze: keep chosen labels out of the search."""

from collections.abc import Iterable
from dataclasses import replace

from jmudsc.paths import check_patterns, matches
from jmudsc.spec.permutation_spec import PermutationSpec


def freeze(spec: PermutationSpec, patterns: str | Iterable[str]) -> PermutationSpec:
    """Keep labels in place: no method permutes or zips their units.

    A frozen label stays on its axes, so that labels nested in it may still be permuted
    anew for each of its units.

    Args:
        spec: the permutation spec.
        patterns: shell patterns (`*` also matches `/`) of label names and leaf paths; a
            leaf's path stands for every label on the leaf.

    Returns:
        The spec with `Label.fixed` set for those labels.

    Raises:
        ValueError: listing the patterns that match no label and no leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jmudsc import infer_spec
        >>> def apply_fn(variables, x):
        ...     return jax.nn.relu(x @ variables["in"]) @ variables["out"]
        >>> variables = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
        >>> spec = infer_spec(apply_fn, variables, jnp.ones((4, 3)))
        >>> freeze(spec, ["in"]).labels["P_0"].fixed
        'is frozen by "in"'
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    check_patterns(
        "freeze",
        patterns,
        [*spec.labels, *spec.axes],
        "label or a leaf",
        "print(spec) shows the names there are.",
    )
    labels = dict(spec.labels)
    for pattern in patterns:
        for name in _matched(spec, pattern):
            reason = labels[name].fixed or f'is frozen by "{pattern}"'
            labels[name] = replace(labels[name], fixed=reason)
    return replace(spec, labels=labels)


def _matched(spec: PermutationSpec, pattern: str) -> set[str]:
    """Return the labels that a pattern stands for."""
    leaves = [path for path in spec.axes if matches(path, [pattern])]
    names = {name for name in spec.labels if matches(name, [pattern])}
    return names | {n for path in leaves for a in spec.axes[path] for n in a.labels()}
