"""Coordinate descent: match one label after the other until none gets better."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.digests import digest_of
from jmudsc.lazy import Leaf
from jmudsc.matching.journal import Journal
from jmudsc.matching.methods import check_alpha, method_of
from jmudsc.matching.moment_cache import BUDGET, Memory
from jmudsc.matching.moments import Moments
from jmudsc.matching.multi_model import check_reference
from jmudsc.matching.nested_labels import families, match_family, stacked_shape
from jmudsc.matching.similarity import activation_similarity, weight_similarity
from jmudsc.matching.weight_vectors import others_on
from jmudsc.progress import Progress
from jmudsc.reordering.permute import identity
from jmudsc.spec.check_variables import check_covers, check_same
from jmudsc.spec.permutation_spec import PermutationSpec

# What a step is kept as in a journal: the objective of each label, and assignments.
_REACHED, _TO = "reached", "to/"


@dataclass(frozen=True)
class Match:
    """What matching found.

    Attributes:
        assignment: label -> `int32[models, *parent units, units]`, the merged unit that
            each unit of each model goes to.
        history: the objective of each sweep, the mean over the labels that can move of
            the mean similarity of the units that share a merged unit, in [-1, 1]; empty
            without sweeps.
        converged: whether a sweep changed nothing or `patience` sweeps brought no
            improvement, rather than `max_sweeps` ending the search.
    """

    assignment: Mapping[str, np.ndarray]
    history: tuple[float, ...] = ()
    converged: bool = True


def match(
    spec: PermutationSpec,
    models: Sequence[PyTree],
    moments: Mapping[str, Moments] | None = None,
    *,
    method: str = "mudsc-zip",
    alpha: float = 0.5,
    key: jax.Array,
    a: float = 0.5,
    b: float = 1.0,
    reference: str = "first",
    patience: int = 5,
    max_sweeps: int = 100,
    budget: int = BUDGET,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Match:
    """Match the units of models by weights, by activations, or by both.

    Labels are first matched by activations alone, then by coordinate descent: sweeps
    over the labels in a random order, each label matched anew by the blend
    `alpha * weight similarity + (1 - alpha) * activation similarity`, where the weight
    similarity is taken under the current assignment of all other labels (Xu et al.
    2024, arXiv:2403.01753, algorithm 1). The best sweep is kept.

    Args:
        spec: the permutation spec.
        models: the variables of each model, two or more, lazy or not.
        moments: activation moments from `collect`; None for `weight-*` and `average`.
        method: one of `METHODS`; `align` is one-to-one, `zip` also merges units of one
            model.
        alpha: the balance, share of the weight similarity in [0, 1]; used by `mudsc-*`.
        key: a PRNG key, for the order of the labels.
        a: for zip, decay of a merged unit's similarities, in [0, 1].
        b: for zip, share of merges a model may spend on its own units, in [0, 1].
        reference: for align, and for groups whose units are zipped: what more than two
            models are aligned to, `first`, `mean` or `universe`; see `align_to`.
        patience: sweeps without improvement after which to stop.
        max_sweeps: sweeps after which to stop in any case.
        budget: bytes that may be spent on remembering what weights say of units (see
            `Memory`); they save time and make no other difference.
        journal: where every step is kept, to be taken up again after a crash; its
            identity must say what models these are.
        progress: called with the objective after every sweep.

    Returns:
        The assignment, with the history of the objective.

    Raises:
        ValueError: if the method or the reference is unknown, alpha is outside [0, 1],
            moments are missing or of other models, or the models do not fit the spec.
    """
    method_of("match", method)
    check_alpha("match", alpha)
    at = matcher(
        spec,
        models,
        moments,
        method=method,
        key=key,
        a=a,
        b=b,
        reference=reference,
        patience=patience,
        max_sweeps=max_sweeps,
        budget=budget,
        journal=journal,
        progress=progress,
    )
    return at(alpha)


def matcher(
    spec: PermutationSpec,
    models: Sequence[PyTree],
    moments: Mapping[str, Moments] | None = None,
    *,
    method: str = "mudsc-zip",
    key: jax.Array,
    a: float = 0.5,
    b: float = 1.0,
    reference: str = "first",
    patience: int = 5,
    max_sweeps: int = 100,
    budget: int = BUDGET,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Callable[[float], Match]:
    """Prepare to match the same models by several balances.

    What does not depend on alpha is computed once: the similarity of activations, the
    matching by it that all searches start from, and the similarities of weights as long
    as the assignments that they depend on are the same.

    Args:
        spec: as for `match`, like all that follow.
        models: likewise.
        moments: likewise.
        method: likewise.
        key: likewise.
        a: likewise.
        b: likewise.
        reference: likewise.
        patience: likewise.
        max_sweeps: likewise.
        budget: likewise.
        journal: likewise.
        progress: likewise.

    Returns:
        A function from alpha to what `match` returns for it, bit for bit.

    Raises:
        ValueError: as `match`.
    """
    row = method_of("match", method)
    check_reference("match", reference)
    if row.activations and moments is None:
        raise ValueError(
            f"match: {method} needs activation moments, got None. Pass what collect "
            "returns."
        )
    check_same("match", models)
    leaves = [paths.flatten(model) for model in models]
    check_covers("match", spec, leaves[0])
    _check_moments(spec, moments or {}, len(models))
    start = {
        name: np.tile(row, (len(models),) + (1,) * row.ndim).astype(np.int32)
        for name, row in identity(spec).items()
    }
    if not row.matches:
        return lambda alpha: Match(start)
    known = moments if moments and row.activations else {}
    activation = {name: activation_similarity(m) for name, m in known.items()}
    kept = activation if journal else {}
    search = _Search(
        spec=spec,
        leaves=leaves,
        activation=activation,
        seen={n: digest_of([x.tobytes()]).encode() for n, x in kept.items()},
        alpha=0.0,
        memory=Memory(budget),
        zipped=row.zips,
        a=a,
        b=b,
        reference=reference,
        journal=journal and journal.of(_digest(spec)),
    )
    if row.activations:
        # Labels without activations last: their weights meet the others' order.
        for family in sorted(families(spec), key=activation.keys().isdisjoint):
            start |= search.step(family, start)[0]
    if not row.weights:
        return lambda alpha: Match(start)

    def at(alpha: float) -> Match:
        check_alpha("match", alpha)
        blended = replace(search, alpha=alpha if row.blends else 1.0)
        return _descend(blended, start, key, patience, max_sweeps, progress)

    return at


def _check_moments(
    spec: PermutationSpec, moments: Mapping[str, Moments], models: int
) -> None:
    problems = []
    for name, label_moments in moments.items():
        have = label_moments.mean.shape
        if name not in spec.labels:
            hint = paths.did_you_mean(name, spec.labels)
            problems.append(f"{name} is no label of the spec{hint}")
        elif have != (need := stacked_shape(spec, name, models)):
            problems.append(
                f"{name} has {_product(have)} stacked units, needed {_product(need)}"
            )
    if problems:
        raise ValueError(
            f"match: the moments do not fit the spec and the {models} models:\n"
            f"{paths.listed(problems)}\nCollect them with this spec from these models."
        )


def _digest(spec: PermutationSpec) -> str:
    """Return a digest of all of a spec that matching depends on."""
    parts = dict(spec.axes), dict(spec.labels), spec.consumed, spec.statistics
    ordered = [sorted(x) if isinstance(x, frozenset) else x for x in parts]
    return digest_of([repr(ordered).encode()])


def _product(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@dataclass(frozen=True)
class _Search:
    """Everything that stays the same during coordinate descent."""

    spec: PermutationSpec
    leaves: Sequence[Mapping[str, Leaf]]
    activation: Mapping[str, np.ndarray]
    alpha: float
    memory: Memory
    zipped: bool
    a: float
    b: float
    reference: str
    journal: Journal | None
    seen: Mapping[str, bytes]  # for the journal: digests of what activations say

    def step(
        self, family: Sequence[str], assignment: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[float]]:
        """Match one family; return its new assignment and the objective per label."""

        def state() -> Iterator[bytes]:
            options = self.alpha, self.zipped, self.a, self.b, self.reference, family
            yield repr(options).encode()
            yield from (assignment[n].tobytes() for n in _needed(self.spec, family))
            yield from (self.seen[n] for n in family if n in self.seen)

        def compute() -> dict[str, np.ndarray]:
            found, reached = self.matched(family, assignment)
            moved = {f"{_TO}{name}": row for name, row in found.items()}
            return {_REACHED: np.array(reached), **moved}

        kept = self.journal.recall(state, compute) if self.journal else compute()
        reached = kept.pop(_REACHED).tolist()
        return {name.removeprefix(_TO): row for name, row in kept.items()}, reached

    def matched(
        self, family: Sequence[str], assignment: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[float]]:
        """Compute what `step` returns."""
        similarity = self.similarity(family, assignment)
        found = match_family(
            self.spec,
            family,
            similarity,
            assignment,
            zipped=self.zipped,
            a=self.a,
            b=self.b,
            reference=self.reference,
        )
        now = {**assignment, **found}
        return found, [
            mean_similarity(self.spec, name, matrix, now)
            for name, matrix in similarity.items()
        ]

    def similarity(
        self, family: Sequence[str], assignment: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Blend the similarities of each label of a family.

        A label that one space says nothing about is matched in the other; one that
        neither knows keeps its units in place.
        """
        blends = {}
        for name in family:
            if not _stands_alone(self.spec, name):
                continue
            activation = self.activation.get(name)
            weight = None
            if self.alpha > 0 or activation is None:
                weight = weight_similarity(
                    self.spec,
                    self.leaves,
                    assignment,
                    name,
                    within=self.zipped,
                    memory=self.memory,
                )
            if weight is not None and activation is not None:
                alpha = np.float32(self.alpha)
                blends[name] = alpha * weight + (1 - alpha) * activation
            elif weight is not None:
                blends[name] = weight
            elif activation is not None:
                blends[name] = activation
            elif not self.spec.children(name):
                shape = stacked_shape(self.spec, name, models := len(self.leaves))
                own = np.eye(shape[-1] // models, dtype=np.float32)
                tiled = np.tile(own, (models, models))
                blends[name] = np.broadcast_to(tiled, (*shape, shape[-1]))
        return blends


def _stands_alone(spec: PermutationSpec, name: str) -> bool:
    """Whether a label has evidence of its own, besides what is nested in it.

    A fixed label moves with its parents and is evidence of their units; one that has
    no parents that can move tells nothing.
    """
    if all(spec.labels[n].fixed for n in (name, *spec.labels[name].parents)):
        return False
    nested = {
        site.path for child in spec.children(name) for site in spec.labels[child].sites
    }
    sites = spec.labels[name].sites
    return any(s.path not in nested for s in sites)


def _descend(
    search: _Search,
    start: Mapping[str, np.ndarray],
    key: jax.Array,
    patience: int,
    max_sweeps: int,
    progress: Progress | None,
) -> Match:
    current, best = dict(start), dict(start)
    labels = search.spec.labels
    groups = [f for f in families(search.spec) if not all(labels[n].fixed for n in f)]
    needed = [_needed(search.spec, family) for family in groups]
    latest: dict[int, tuple[list[bytes], dict[str, np.ndarray], list[float]]] = {}
    history: list[float] = []
    for sweep in range(max_sweeps if groups else 0):
        order = jax.random.permutation(jax.random.fold_in(key, sweep), len(groups))
        before, reached = dict(current), []
        for number in map(int, np.asarray(order)):
            state = [current[name].tobytes() for name in needed[number]]
            if number not in latest or latest[number][0] != state:
                latest[number] = state, *search.step(groups[number], current)
            current |= latest[number][1]
            reached += latest[number][2]
        history.append(float(np.mean(reached)))
        if progress:
            progress(f"matching ({history[-1]:.4f})", sweep + 1, max_sweeps)
        peak = int(np.argmax(history))
        if peak == sweep:
            best = dict(current)
        unchanged = all(np.array_equal(before[n], current[n]) for n in current)
        if unchanged or sweep - peak >= patience:
            return Match(best, tuple(history))
        if peak != sweep:
            current = dict(best)
    return Match(best, tuple(history), converged=not groups)


def _needed(spec: PermutationSpec, family: Sequence[str]) -> list[str]:
    """Return the labels whose assignment decides how a family is matched."""
    found = set(spec.labels[family[0]].parents)
    for name in family:
        for site in spec.labels[name].sites:
            found.update(others_on(spec, name, site) or ())
    return [name for name in spec.labels if name in found]


def mean_similarity(
    spec: PermutationSpec,
    name: str,
    similarity: np.ndarray,
    assignment: Mapping[str, np.ndarray],
) -> float:
    """Average the similarity over all pairs of units that share a merged unit.

    Args:
        spec: the permutation spec.
        name: the label.
        similarity: (models*units, models*units), of its stacked units; parents that
            stay in place are axes that lead.
        assignment: of this label and its parents.

    Returns:
        The mean, in [-1, 1]; 0 if no two units share one.
    """
    models = len(assignment[name])
    apart, _ = spec.compared_shape(name)
    merged = np.stack(
        [merged_units(spec, assignment, name, m) for m in range(models)], len(apart)
    )
    stacked = stacked_shape(spec, name, models)[-1]
    total, pairs = 0.0, 0
    for units, values in zip(
        merged.reshape(-1, stacked),
        similarity.reshape(-1, stacked, stacked),
        strict=True,
    ):
        found = _shared(units, values)
        total, pairs = total + float(found.sum(dtype=np.float64)), pairs + len(found)
    return total / pairs if pairs else 0.0


def _shared(merged: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Return the similarities of all pairs of stacked units with one merged unit."""
    order = merged.argsort(kind="stable")
    found = [np.empty(0, similarity.dtype)]
    for apart in range(1, len(order)):
        same = merged[order[:-apart]] == merged[order[apart:]]
        if not same.any():
            break
        found.append(similarity[order[:-apart][same], order[apart:][same]])
    return np.concatenate(found)


def merged_units(
    spec: PermutationSpec, assignment: Mapping[str, np.ndarray], name: str, model: int
) -> np.ndarray:
    """Number the merged unit of every unit of a model, parents' units included.

    Args:
        spec: the permutation spec.
        assignment: of the label and its parents.
        name: the label.
        model: the model.

    Returns:
        `int[*own parent units, units]`, row-major numbers of merged units.
    """
    parents = spec.labels[name].parents
    sizes = [spec.labels[n].size for n in (*parents, name)]
    grid = np.indices(sizes, sparse=True)
    places: dict[str, np.ndarray] = {}
    for label, own in zip((*parents, name), grid, strict=True):
        outer = [places[parent] for parent in spec.labels[label].parents]
        places[label] = assignment[label][(model, *outer, own)]
    return np.ravel_multi_index(np.broadcast_arrays(*places.values()), sizes)
