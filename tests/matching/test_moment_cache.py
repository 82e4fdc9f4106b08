import functools
import sys

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from chains import assert_same, chain_of

from jmudsc import collect, infer_spec, match, matcher, random_permutations
from jmudsc.matching.moment_cache import MomentCache
from jmudsc.matching.moments import Moments
from jmudsc.matching.weight_vectors import others_on, unit_slices

SEARCHES = ("weight-align", "weight-zip", "mudsc-align", "mudsc-zip")


CHAINS = {"chain": chain_of(8), "odd chain": chain_of(13)}
# The leaves of each label in groups, and the other label on them.
LEAVES = {
    0: {("0/kernel", "0/bias"): None, "1/kernel": 1},
    1: {"1/kernel": 0, "1/bias": None, "2/kernel": 2},
    2: {"2/kernel": 1, ("2/bias", "out/kernel"): None},
}


@functools.cache
def strangers(name="chain"):
    """Return networks that have nothing in common: spec, models, moments."""
    net = {**tiny.NETS, **CHAINS}[name]
    models = [tiny.variables(net, seed) for seed in range(2)]
    batches = [tiny.batch(net, seed, 40) for seed in range(2)]
    spec = infer_spec(net.apply_fn, models[0], batches[0])
    return spec, models, collect(spec, net.apply_fn, models, batches)


@pytest.mark.parametrize("name", ["chain", "attention"])
@pytest.mark.parametrize("method", SEARCHES)
def test_what_is_remembered_makes_no_difference(method, name):
    parts = strangers(name)
    at = matcher(*parts, method=method, key=jax.random.key(1))
    for alpha in (0.5, 1.0, 0.2, 0.5):
        own = {"method": method, "alpha": alpha, "key": jax.random.key(1)}
        expected = match(*parts, **own, budget=0)
        assert_same(at(alpha), expected)
        assert_same(match(*parts, **own, budget=3000), expected)


@pytest.mark.parametrize("method", ["average", "activation-align", "activation-zip"])
def test_methods_without_sweeps_are_prepared_too(method, key):
    at = matcher(*strangers(), method=method, key=key)
    assert_same(at(0.5), match(*strangers(), method=method, key=key))


def spied(monkeypatch, method, budget, alphas):
    """Return per label matched by weights the rows it met, and the leaves it read."""
    module = sys.modules["jmudsc.matching.coordinate_step"]
    asked, products = [], []
    compare = module.weight_similarity

    def weight_similarity(spec, leaves, assignment, label, **options):
        asked.append((label, {n: rows.tobytes() for n, rows in assignment.items()}))
        products.append(0)
        return compare(spec, leaves, assignment, label, **options)

    def recalled(cache, of, state, compute):
        def counted():
            products[-1] += 1
            return compute()

        return recall(cache, of, state, counted)

    recall = MomentCache.recall
    monkeypatch.setattr(module, "weight_similarity", weight_similarity)
    monkeypatch.setattr(MomentCache, "recall", recalled)
    at = matcher(*strangers(), method=method, key=jax.random.key(0), budget=budget)
    found = [at(alpha) for alpha in alphas]
    return asked, products, found


@pytest.mark.parametrize("method", SEARCHES)
def test_leaves_are_read_again_only_when_their_other_label_moved(method, monkeypatch):
    spec = strangers()[0]
    names = [tiny.label_at(spec, f"{number}/bias", 0) for number in range(3)]
    asked, products, found = spied(monkeypatch, method, 2**20, (0.3, 0.6))
    seen = {}
    for (label, rows), count in zip(asked, products, strict=True):
        moved = new = 0
        for leaf, other in LEAVES[names.index(label)].items():
            state = None if other is None else rows[names[other]]
            versions = seen.setdefault((label, leaf), [])
            moved += versions[-1:] != [state]
            new += state not in versions
            versions.append(state)
        assert new <= count <= moved
    groups = [len(LEAVES[names.index(label)]) for label, _ in asked]
    assert products[:3] == groups[:3]
    assert len({label for label, _ in asked[:3]}) == 3
    assert sum(products) < sum(groups) < 7 * sum(len(f.history) for f in found)


@pytest.mark.parametrize("method", SEARCHES)
def test_a_label_is_matched_again_only_when_another_moved(method, monkeypatch):
    spec = strangers()[0]
    names = [tiny.label_at(spec, f"{number}/bias", 0) for number in range(3)]
    asked, _, (found,) = spied(monkeypatch, method, 0, (0.5,))
    assert len(asked) < 3 * len(found.history)
    latest = {}
    for label, rows in asked:
        others = LEAVES[names.index(label)].values()
        state = [rows[names[other]] for other in others if other is not None]
        assert latest.get(label) != state
        latest[label] = state


def test_without_a_budget_all_leaves_are_read_every_time(monkeypatch):
    asked, products, _ = spied(monkeypatch, "mudsc-zip", 0, (0.5,))
    names = [tiny.label_at(strangers()[0], f"{n}/bias", 0) for n in range(3)]
    assert products == [len(LEAVES[names.index(label)]) for label, _ in asked]


def test_nothing_is_traced_again_for_other_sweeps_and_balances(monkeypatch):
    traced = []
    all_on_device = lambda *_: True
    monkeypatch.setattr("jmudsc.matching.similarity.are_large", all_on_device)

    def listen(event, duration, **_):
        if event == "/jax/core/compile/jaxpr_trace_duration":
            traced.append(event)

    parts = strangers("odd chain")  # no other test has these sizes
    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.clear_caches()
    lengths = set()
    for method in ("mudsc-align", "mudsc-zip"):
        at = matcher(*parts, method=method, key=jax.random.key(3))
        traced.clear()
        lengths.add(len(at(0.5).history))
        assert traced  # multiplying weights is new
        traced.clear()
        lengths |= {len(at(alpha).history) for alpha in (0.1, 0.3, 0.7, 1.0)}
        again = matcher(*parts, method=method, key=jax.random.key(4))
        lengths.add(len(again(0.4).history))
        assert traced == []
    assert max(lengths) > 3


def test_the_cache_keeps_the_first_and_the_latest_within_its_budget():
    made = []

    def asked(cache, of, state):
        def compute():
            made.append((of, state))
            return Moments(1, jnp.full(2, float(state)), jnp.zeros((2, 2)))

        return float(cache.recall(of, state, compute).mean[0])

    cache = MomentCache(budget=50)  # each takes 24 bytes
    for state in (1, 2, 2, 1, 3, 1, 3, 2):
        assert asked(cache, "a", state) == state
        assert cache.size == (24 if made == [("a", 1)] else 48)
    assert made == [("a", 1), ("a", 2), ("a", 3), ("a", 2)]
    assert [asked(cache, "b", 0), asked(cache, "b", 0)] == [0, 0]  # it is full
    assert made[4:] == [("b", 0), ("b", 0)]
    small = MomentCache(budget=30)
    for state in (1, 2, 2, 1):
        asked(small, "c", state)
        assert small.size == 24
    assert made[6:] == [("c", 1), ("c", 2), ("c", 1)]  # the latest alone


@pytest.mark.parametrize("name", ["cnn", "attention", "recurrent"])
def test_slices_depend_on_the_labels_that_they_are_said_to(name, key):
    spec, models, _ = strangers(name)
    models = [{p: jnp.asarray(x) for p, x in v.items()} for v in models]
    stay = {n: np.stack([p, p]) for n, p in random_permutations(spec, key).items()}
    moved = {n: np.roll(rows, 1, axis=-1) for n, rows in stay.items()}
    for label, record in spec.labels.items():
        for site in record.sites:
            others = others_on(spec, label, site)
            nested = [c for c in spec.children(label) for s in spec.labels[c].sites]
            if others is None:
                assert nested
                continue
            before = unit_slices(spec, models, stay, label, site)
            for other in spec.labels:
                after = unit_slices(
                    spec, models, {**stay, other: moved[other]}, label, site
                )
                same = all(
                    np.array_equal(x, y)
                    for (_, x), (_, y) in zip(before, after, strict=True)
                )
                assert same == (other not in others)
