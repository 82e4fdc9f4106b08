"""Moments that are mended are those that are taken anew, to rounding; bits are kept."""

import jax
import numpy as np
import pytest
import tiny
from chains import assert_same, chain_of

from jmudsc import collect, infer_spec, match, matcher, permute, random_permutations
from jmudsc.matching import coordinate_descent, row_updates, similarity
from jmudsc.matching.cross_moments import cross_moments_over
from jmudsc.matching.journal import Journal
from jmudsc.matching.moments import moments_over
from jmudsc.matching.row_updates import Chains, mended, what_moved
from jmudsc.matching.similarity import sites_read
from jmudsc.matching.weight_vectors import unit_entries, unit_slices

NETS = {name: tiny.NETS[name] for name in ("mlp", "cnn")}
NETS["chain"] = chain_of(8)


def parts_of(net, units=2):
    models = [tiny.variables(net, seed) for seed in range(units)]
    batches = [tiny.batch(net, seed, 40) for seed in range(2)]
    return infer_spec(net.apply_fn, models[0], batches[0]), models, batches


def zipped(units, models, draw):
    """Draw a partition of stacked units into merged units, numbered as zip does."""
    stacked = np.concatenate([np.arange(units), draw.integers(units, size=units)])
    rows = draw.permutation(stacked)
    _, first, numbers = np.unique(rows, return_index=True, return_inverse=True)
    return first.argsort().argsort()[numbers].astype(np.int32).reshape(models, units)


def a_few_moved(rows, draw):
    """Let two merged units of a partition swap a member."""
    rows, units = rows.copy(), rows.shape[1]
    one, other = draw.choice(units, 2, replace=False)
    rows[1, one], rows[1, other] = rows[1, other], rows[1, one]
    return rows


@pytest.mark.parametrize("kind", ["permuted", "zipped"])
@pytest.mark.parametrize("name", NETS)
def test_mended_moments_are_those_taken_anew(name, kind, key):
    spec, models, _ = parts_of(NETS[name])
    models = [{p: np.asarray(x) for p, x in v.items()} for v in models]
    draw = np.random.default_rng(3)
    start = {n: np.stack([p, p]) for n, p in random_permutations(spec, key).items()}
    count = 0
    for label in spec.labels:
        for site, others in sites_read(spec, label).items():
            for other in others:
                if spec.labels[other].parents or spec.labels[other].size < 4:
                    continue
                rows = start[other]
                if kind == "zipped":
                    rows = zipped(rows.shape[1], 2, draw)
                before = {n: start[n] for n in others} | {other: rows}
                after = before | {other: a_few_moved(rows, draw)}
                moved = what_moved(spec, label, (site,), before, after)
                if moved is None:
                    continue
                assert len(moved.old) == len(moved.new) <= 2
                count += len(moved.old) > 0
                old, new = (
                    unit_entries(spec, models, state, label, site, (other, merged))
                    for state, merged in ((before, moved.old), (after, moved.new))
                )
                for over in (moments_over, cross_moments_over):
                    was, expected = (
                        over(2, [unit_slices(spec, models, state, label, site)])
                        for state in (before, after)
                    )
                    found = mended(was, old, new)
                    for part, value in vars(expected).items():
                        np.testing.assert_allclose(
                            getattr(found, part), value, atol=2e-5, rtol=2e-5
                        )
    assert count > 0


@pytest.mark.parametrize(("name", "several"), [("recurrent", 1), ("experts", 2)])
def test_no_update_where_rows_do_not_tell_what_moved(name, several, key):
    spec, _, _ = parts_of(tiny.NETS[name])
    start = {n: np.stack([p, p]) for n, p in random_permutations(spec, key).items()}
    after = {n: np.roll(rows, 1, axis=-1) for n, rows in start.items()}
    asked = 0
    for label in spec.labels:
        for site, others in sites_read(spec, label).items():
            states = [{n: x[n] for n in others} for x in (start, after)]
            assert what_moved(spec, label, (site,), *states) is None
            asked += len(others) == several
    assert asked  # the label itself is on the other axis, or is one of two


def test_a_chain_ends_before_as_many_rows_moved_as_there_are():
    spec, _, _ = parts_of(chain_of(24))
    label, site, other = next(
        (label, site, others[0])
        for label in spec.labels
        for site, others in sites_read(spec, label).items()
        if others
    )
    draw, chains = np.random.default_rng(0), Chains()
    rows = np.stack([np.arange(24, dtype=np.int32)] * 2)
    lengths, states = [], []
    for _ in range(40):
        links = chains.advance(spec, label, (site,), {other: rows})
        assert chains.advance(spec, label, (site,), {other: rows}) == links
        assert links[0].moved is None
        assert all(link.moved for link in links[1:])
        assert links[-1].rows == sum(len(x.moved.new) for x in links[1:]) <= 24
        lengths.append(len(links))
        states.append(rows)
        rows = a_few_moved(rows, draw)
    assert max(lengths) > 6
    assert lengths.count(1) > 2  # taken anew, now and then
    back = chains.links[label, (site,)][0].state
    assert len(chains.advance(spec, label, (site,), back)) == 1
    far = {other: np.stack([np.arange(24, dtype=np.int32), draw.permutation(24)])}
    assert len(chains.advance(spec, label, (site,), far)) == 1


@pytest.fixture(scope="module")
def large():
    net = chain_of(32)
    spec, models, batches = parts_of(net)
    draw = np.random.default_rng(0)
    noisy = {
        n: x + 2 * x.std() * draw.standard_normal(x.shape, np.float32)
        for n, x in models[0].items()
    }
    models[1] = permute(spec, noisy, random_permutations(spec, jax.random.key(2)))
    return spec, models, collect(spec, net.apply_fn, models, batches)


@pytest.fixture
def updates(monkeypatch):
    made = []

    def counted(*args):
        made.append(args)
        return mended(*args)

    monkeypatch.setattr(similarity, "mended", counted)
    return made


@pytest.mark.parametrize("method", ["weight-align", "mudsc-align", "mudsc-zip"])
def test_updates_depend_on_nothing_that_is_remembered(method, large, updates):
    options = {"method": method, "key": jax.random.key(5)}
    expected = match(*large, alpha=0.6, **options)
    assert len(updates) > 1
    for budget in (0, 20_000, 50_000):
        assert_same(match(*large, alpha=0.6, budget=budget, **options), expected)
    at = matcher(*large, **options)
    for alpha in (0.2, 0.6, 0.9, 0.6):
        found = at(alpha)
        if alpha == 0.6 or not method.startswith("mudsc"):
            assert_same(found, expected)


@pytest.mark.parametrize("forgotten", [1, 2, 3])
def test_a_search_that_goes_on_makes_the_same_updates(
    forgotten, large, updates, tmp_path
):
    options = {"method": "mudsc-zip", "key": jax.random.key(5), "alpha": 0.6}
    expected = match(*large, **options)
    journal = Journal(tmp_path, "these")
    assert_same(match(*large, journal=journal, **options), expected)
    steps = sorted(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for file in steps[-3 * forgotten :]:
        file.unlink()
    updates.clear()
    assert_same(match(*large, journal=journal, **options), expected)
    assert updates


def test_without_updates_matching_is_the_same_to_rounding(large, updates, monkeypatch):
    options = {"method": "mudsc-zip", "key": jax.random.key(5), "alpha": 0.6}
    with_updates = match(*large, **options)
    updates.clear()
    monkeypatch.setattr(coordinate_descent, "BUDGET", 0)  # too large to be kept
    without = match(*large, **options)
    assert not updates
    assert row_updates._FEW < 1
    np.testing.assert_allclose(with_updates.history, without.history, atol=1e-6)
    for name, rows in without.assignment.items():
        np.testing.assert_array_equal(with_updates.assignment[name], rows)
