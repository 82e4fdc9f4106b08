"""Result: everything one merge produced."""

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc.merging.comparison import Comparison
from jmudsc.merging.refit_share import refit_sentence
from jmudsc.merging.verdict import Verdict
from jmudsc.paths import cut, plural
from jmudsc.spec.permutation_spec import PermutationSpec


@dataclass(frozen=True)
class MergeResult:
    """What `merge` returns and `save` writes.

    Attributes:
        variables: the merged variables, a pytree of the parents' structure; where some
            leaves are separate, the first of `networks`.
        spec: the permutation spec the merge was made with, of the leaves it merged.
        assignment: per label `int32[models, *outer units, units]`, the merged unit
            that each unit of each model went to.
        history: the objective of each sweep of coordinate descent: the mean over
            labels of the mean similarity of matched units, in [-1, 1].
        recipe: what decided the merge (method, alpha, weights, ..., and the machine,
            which decides the last bits), plain JSON values.
        changes: path of a leaf -> what refit and repair did with it after averaging, or
            why they could do nothing; empty without them.
        networks: where some leaves are separate, per model its variables: the leaves
            that were merged, and its own others carried into the merged coordinates,
            for its own `apply_fn`; empty otherwise.
        verdict: whether the merged network is better than the best single parent, on
            batches that were held out; None where nothing says so (`recipe` says why).
        comparison: all merges that method `best` tried, in one table; None for other
            methods.
        seconds: stage -> seconds of wall time, compilation included: deriving and
            checking the spec, statistics, judging, matching and combining (over all
            balances tried), repairing. They are in the report, not in the provenance:
            the same merge takes another time.
    """

    variables: PyTree
    spec: PermutationSpec
    assignment: Mapping[str, np.ndarray]
    history: tuple[float, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, str] = field(default_factory=dict)
    networks: tuple[PyTree, ...] = ()
    verdict: Verdict | None = None
    comparison: Comparison | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def refit_reach(self) -> str | None:
        """How many parameters a refit changed, as a sentence; None without one."""
        return refit_sentence(self.variables, self.changes)

    def __repr__(self) -> str:
        rows = list(_summary(self))
        width = max(len(name) for name, _ in rows)
        lines = [f"  {name.ljust(width)}  {said}" for name, said in rows]
        return "\n".join(["MergeResult", *lines])

    def _repr_html_(self) -> str:
        """Show it in a notebook, as a table."""
        cell = '<t{0} style="text-align: left">{1}</t{0}>'
        rows = [
            f"<tr>{cell.format('h', html.escape(name))}"
            f"{cell.format('d', html.escape(said))}</tr>"
            for name, said in _summary(self)
        ]
        return f"<table>{''.join(rows)}</table>"


def _summary(result: MergeResult) -> Iterator[tuple[str, str]]:
    """Yield what there is to say of a merge in no more than nine lines."""
    yield "method", cut(_method(result.recipe))
    yield "variables", _counted(result)
    if result.networks:
        yield "networks", f"{len(result.networks)}, one for each model, in .networks"
    if result.spec.labels:
        yield "labels", _labels(result)
    if result.history:
        sweeps = plural(len(result.history), "sweep")
        yield "similarity", f"{max(result.history):.3f}, the best of {sweeps}"
    if result.changes:
        leaves = plural(len(result.changes), "leaf", "leaves")
        yield "changes", f"of {leaves} after averaging, in .changes"
    yield "verdict", _verdict(result)
    if result.comparison:
        tried = plural(len(result.comparison.verdicts), "merge")
        yield "comparison", f"of {tried}, print(result.comparison)"
    if result.seconds:
        most = max(result.seconds, key=lambda stage: result.seconds[stage])
        yield "seconds", f"{sum(result.seconds.values()):.1f}, most of it {most}"


def _method(recipe: Mapping[str, Any]) -> str:
    """Say how networks were merged, and by which repairs."""
    method = recipe.get("method", "?")
    if "chosen" in recipe:
        return f"{method}: {recipe['chosen']}"
    repairs = [str(recipe[key]) for key in ("refit", "repair") if recipe.get(key)]
    return " + ".join([str(method), *repairs])


def _counted(result: MergeResult) -> str:
    leaves = jax.tree.leaves(result.variables)
    arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]
    count = sum(int(np.prod(np.shape(leaf))) for leaf in arrays)
    dtypes = ", ".join(dict.fromkeys(str(leaf.dtype) for leaf in arrays))
    return cut(f"{plural(len(leaves), 'leaf', 'leaves')}, {count:,} entries ({dtypes})")


def _labels(result: MergeResult) -> str:
    labels = result.spec.labels.values()
    stay = sum(1 for label in labels if label.fixed)
    paths = {site.path for label in labels for site in label.sites}
    leaves = plural(len(result.spec.axes), "leaf", "leaves")
    staying = f", {stay} stay in place" if stay else ""
    return f"{len(labels)} on {len(paths)} of {leaves}{staying}"


def _verdict(result: MergeResult) -> str:
    if result.verdict is None:
        return cut(str(result.recipe.get("verdict", "none")))
    return result.verdict.short
