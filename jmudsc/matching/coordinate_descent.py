"""Coordinate descent: match label after label, in sweeps, until none gets better."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.digests import digest_of
from jmudsc.keys import check_key
from jmudsc.lazy import LazyArray, present
from jmudsc.matching.coordinate_step import inputs_of, Search, Step, take_step
from jmudsc.matching.journal import Journal
from jmudsc.matching.match_options import MatchOptions
from jmudsc.matching.methods import check_alpha, method_of
from jmudsc.matching.moment_cache import BUDGET, MomentCache
from jmudsc.matching.moments import Moments
from jmudsc.matching.multi_model import check_reference
from jmudsc.matching.nested_labels import families, stacked_shape
from jmudsc.matching.passes import bytes_of_moments
from jmudsc.matching.row_updates import Chains
from jmudsc.matching.similarity import activation_similarity, groups_mended
from jmudsc.progress import Progress
from jmudsc.reordering.permute import identity
from jmudsc.spec.check_variables import check_covers, check_same
from jmudsc.spec.permutation_spec import PermutationSpec


@dataclass(frozen=True)
class Match:
    """What matching found.

    Attributes:
        assignment: label -> `int32[models, *outer units, units]`, the merged unit that
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
    a: float = MatchOptions.a,
    b: float = MatchOptions.b,
    reference: str = MatchOptions.reference,
    patience: int = MatchOptions.patience,
    max_sweeps: int = MatchOptions.max_sweeps,
    budget: int = MatchOptions.budget,
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
    row = method_of("match", method)
    check_key("match", key)
    check_alpha("match", alpha)
    options = MatchOptions(row, a, b, reference, patience, max_sweeps, budget)
    search = _search(spec, models, moments, options, journal)
    return _matcher(search, key, progress)(alpha)


def matcher(
    spec: PermutationSpec,
    models: Sequence[PyTree],
    moments: Mapping[str, Moments] | None = None,
    *,
    method: str = "mudsc-zip",
    key: jax.Array,
    a: float = MatchOptions.a,
    b: float = MatchOptions.b,
    reference: str = MatchOptions.reference,
    patience: int = MatchOptions.patience,
    max_sweeps: int = MatchOptions.max_sweeps,
    budget: int = MatchOptions.budget,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Callable[[float], Match]:
    """Prepare to match the same models at several values of alpha.

    It takes the arguments of `match`, all but alpha, and returns a function from alpha
    to what `match` returns for it, bit for bit. What does not depend on alpha is
    computed once: the similarity of activations, the matching by it that all searches
    start from, and the similarities of weights as long as the assignments that they
    depend on are the same.

    Raises:
        ValueError: as `match`.
    """
    row = method_of("match", method)
    options = MatchOptions(row, a, b, reference, patience, max_sweeps, budget)
    search = _search(spec, models, moments, options, journal)
    return _matcher(search, key, progress)


def _search(
    spec: PermutationSpec,
    models: Sequence[PyTree],
    moments: Mapping[str, Moments] | None,
    options: MatchOptions,
    journal: Journal | None,
) -> Search:
    """Check what is given and compute what all searches share."""
    check_reference("match", options.reference)
    if options.method.activations and moments is None:
        raise ValueError(
            f"match: {options.method.name} needs activation moments, got None. Pass "
            "what collect returns."
        )
    check_same("match", models)
    leaves = [paths.flatten(model) for model in models]
    check_covers("match", spec, leaves[0])
    _check_moments(spec, moments or {}, len(models))
    read = options.method.matches and options.method.activations
    known = moments if moments and read else {}
    activation = {name: _similarity_of(m) for name, m in known.items()}
    kept = activation if journal else {}
    return Search(
        spec,
        leaves,
        activation,
        options,
        alpha=0.0,
        cache=MomentCache(options.budget),
        journal=journal and journal.of(spec_digest(spec)),
        chains=Chains() if _are_kept(spec, len(models)) else None,
        evidence={n: _digest(present(x)).encode() for n, x in kept.items()},
    )


def _are_kept(spec: PermutationSpec, models: int) -> bool:
    """Whether moments of weights are kept, by the usual budget, to be mended.

    That depends on sizes alone: with whatever budget the bits are the same.
    """
    sizes = [
        bytes_of_moments(spec, name, models) * len(groups_mended(spec, name, models))
        for name in spec.labels
    ]
    return sum(sizes) <= BUDGET


def _digest(array: np.ndarray) -> str:
    return digest_of([np.ascontiguousarray(array).tobytes()])


def _similarity_of(moments: Moments) -> np.ndarray | LazyArray:
    """Return the similarity of activations, lazy if the moments are on disk."""
    comoment = moments.comoment
    if not isinstance(comoment, LazyArray):
        return activation_similarity(moments)

    def fetch(names: Sequence[str]) -> dict[str, np.ndarray]:
        return dict.fromkeys(names, activation_similarity(moments))

    return LazyArray("similarity", comoment.shape, comoment.dtype, fetch)


def _matcher(
    search: Search, key: jax.Array, progress: Progress | None
) -> Callable[[float], Match]:
    method, start = search.options.method, _start(search)
    if not (method.matches and method.weights):
        return lambda alpha: Match(start)

    def at(alpha: float) -> Match:
        check_alpha("match", alpha)
        chains = Chains() if search.chains is not None else None
        blend = alpha if method.blends else 1.0
        blended = replace(search, alpha=blend, chains=chains)
        return _descend(blended, start, key, progress)

    return at


def _start(search: Search) -> dict[str, np.ndarray]:
    """Return what activations alone say; without them all units stay in place."""
    start = {
        name: np.tile(row, (len(search.leaves),) + (1,) * row.ndim).astype(np.int32)
        for name, row in identity(search.spec).items()
    }
    method = search.options.method
    if not (method.matches and method.activations):
        return start
    # Labels without activations last: their weights meet the others' order.
    for family in sorted(
        families(search.spec), key=search.activation.keys().isdisjoint
    ):
        start |= take_step(search, family, start).rows
    return start


def _descend(
    search: Search,
    start: Mapping[str, np.ndarray],
    key: jax.Array,
    progress: Progress | None,
) -> Match:
    """Sweep from the best assignment so far until no sweep makes it better."""
    steps, best, history = _steps_of(search), dict(start), []
    patience, most = search.options.patience, search.options.max_sweeps
    for sweep in range(most if steps.families else 0):
        order = np.asarray(_order(key, np.uint32(sweep), len(steps.families)))
        found, reached = steps.sweep(map(int, order), best)
        history.append(reached)
        if progress:
            progress(f"matching ({reached:.4f})", sweep + 1, most)
        peak = int(np.argmax(history))
        unchanged = all(np.array_equal(best[name], found[name]) for name in found)
        if peak == sweep:
            best = found
        if unchanged or sweep - peak >= patience:
            return Match(best, tuple(history))
    return Match(best, tuple(history), converged=not steps.families)


@functools.partial(jax.jit, static_argnames="count")
def _order(key: jax.Array, sweep: jax.Array, count: int) -> jax.Array:
    """Draw the order in which a sweep goes through so many families."""
    return jax.random.permutation(jax.random.fold_in(key, sweep), count)


@dataclass(frozen=True)
class _Steps:
    """The steps of a search; one whose inputs are as last time is not taken again.

    Attributes:
        search: the problem.
        families: the families that can move.
        inputs: for each the labels that decide how it is matched.
        latest: number of a family -> the inputs of its latest step, and the step.
    """

    search: Search
    families: Sequence[Sequence[str]]
    inputs: Sequence[Sequence[str]]
    latest: dict[int, tuple[list[bytes], Step]] = field(default_factory=dict)

    def sweep(
        self, order: Iterable[int], assignment: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], float]:
        """Match every family once; return the new assignment and its objective."""
        current, reached = dict(assignment), []
        for number in order:
            step = self.take(number, current)
            current |= step.rows
            reached += step.reached
        return current, float(np.mean(reached))

    def take(self, number: int, assignment: Mapping[str, np.ndarray]) -> Step:
        state = [assignment[name].tobytes() for name in self.inputs[number]]
        if number not in self.latest or self.latest[number][0] != state:
            step = take_step(self.search, self.families[number], assignment)
            self.latest[number] = state, step
        return self.latest[number][1]


def _steps_of(search: Search) -> _Steps:
    spec, labels = search.spec, search.spec.labels
    moving = [f for f in families(spec) if not all(labels[n].fixed for n in f)]
    return _Steps(search, moving, [inputs_of(spec, family) for family in moving])


def spec_digest(spec: PermutationSpec) -> str:
    """Return a digest of all of a spec that matching depends on.

    Args:
        spec: the permutation spec.
    """
    silent = frozenset(path for path in spec.axes if not spec.is_evidence(path))
    parts = dict(spec.axes), dict(spec.labels), spec.consumed, silent
    ordered = [sorted(x) if isinstance(x, frozenset) else x for x in parts]
    return digest_of([repr(ordered).encode()])


def _check_moments(
    spec: PermutationSpec, moments: Mapping[str, Moments], models: int
) -> None:
    problems = []
    for name, label_moments in moments.items():
        have = label_moments.mean.shape
        if name not in spec.labels:
            hint = paths.did_you_mean(name, spec.labels)
            problems.append(f"{name}: is no label of the spec{hint}")
        elif have != (need := stacked_shape(spec, name, models)):
            problems.append(
                f"{name}: expected {_product(need)} stacked units, got {_product(have)}"
            )
    if problems:
        raise ValueError(
            f"match: the moments do not fit the spec and the {models} models:\n"
            f"{paths.listed(problems)}\nCollect them with this spec from these models."
        )


def _product(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
