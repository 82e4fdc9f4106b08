"""The refit reaches kernels wherever they are used, and whatever they are made of."""

import functools

import jax
import jax.numpy as jnp
import kernels
import numpy as np
import pytest
import zoo
from assignments import stay
from compiled import programs
from jax import lax

from jmudsc import (
    combine,
    infer_spec,
    merge,
    paths,
    permute,
    random_permutations,
    refit,
)
from jmudsc.repairs.least_squares import LeastSquares, refit_layers
from jmudsc.repairs.merger import Merger


@functools.cache
def net_of(name):
    net = kernels.NETS[name]()
    return net, infer_spec(net.apply_fn, net.variables, net.batch)


def spoilt(variables, size=0.1, seed=1):
    draw = np.random.default_rng(seed)
    noise = lambda leaf: size * draw.standard_normal(leaf.shape, np.float32)
    return jax.tree.map(lambda leaf: leaf + noise(leaf), variables)


def mended(net, spec, merged, ridge=1e-7, batches=None):
    """Refit a network to a parent that is there twice."""
    models = [net.variables, net.variables]
    merger = Merger(spec, net.apply_fn, models, stay(spec, 2), (0.5, 0.5))
    batches = [net.batch[:40], net.batch[40:]] if batches is None else batches
    settings = LeastSquares(ridge=ridge, target="ensemble")
    return refit_layers(merger, merged, batches, settings=settings)


def distance(net, a, b):
    return float(jnp.abs(net.apply_fn(a, net.batch) - net.apply_fn(b, net.batch)).max())


@pytest.mark.parametrize("name", kernels.NETS)
def test_a_network_that_was_spoilt_is_brought_back_to_its_parent(name):
    net, spec = net_of(name)
    merged = spoilt(net.variables)
    found, notes = mended(net, spec, merged)
    assert distance(net, merged, net.variables) > 0.05
    assert distance(net, found, net.variables) < 2e-4
    assert all(note == "refit by least squares" for note in notes.values())
    kept = {path for path in paths.flatten(net.variables) if path not in notes}
    beside = {"first", "second"} if name == "low-rank product added" else set()
    beside |= {"gain"} if name == "divided and negated" else set()
    assert kept == beside


@pytest.mark.parametrize("name", kernels.NETS)
def test_a_network_and_itself_permuted_stay_as_they_are(name, key):
    net, spec = net_of(name)
    perms = random_permutations(spec, key)
    rows = {n: np.stack([stay(spec, 1)[n][0], perms[n]]) for n in spec.labels}
    models = [net.variables, permute(spec, net.variables, perms)]
    merged = combine(spec, models, rows)
    for options in ({}, {"owners": [0, 1]}):
        batches = [net.batch[:32], net.batch[32:]]
        found = refit(spec, net.apply_fn, models, rows, merged, batches, **options)
        assert distance(net, found, net.variables) < 1e-4


PAIRS = {
    "recurrent": (kernels.gru, lambda: kernels.gru(is_scanned=False)),
    "scanned stack": (kernels.scanned_stack, lambda: by_hand(3)),
}


def by_hand(layers):
    """The stack of layers, without a loop."""

    def apply_fn(v, x):
        for number in range(layers):
            x = kernels.block(x, {n: v[n][number] for n in ("up", "bias", "down")})
        return x @ v["last"]

    shapes = kernels.stack_shapes(layers)
    return zoo.of_plain(apply_fn, shapes, (kernels.SAMPLES, kernels.WIDTH))


@pytest.mark.parametrize("name", PAIRS)
def test_a_loop_is_fitted_as_what_it_does_written_out(name):
    both = []
    for make in PAIRS[name]:
        net = make()
        spec = infer_spec(net.apply_fn, net.variables, net.batch)
        models = [net.variables, spoilt(net.variables, 1.0, seed=2)]
        merged = jax.tree.map(lambda a, b: (a + b) / 2, *models)
        batches = [net.batch[:32], net.batch[32:]]
        parts = spec, net.apply_fn, models, stay(spec, 2), merged, batches
        both.append(refit(*parts, owners=[0, 1]))
    for path, leaf in paths.flatten(both[0]).items():
        np.testing.assert_allclose(leaf, both[1][path], rtol=1e-3, atol=1e-4)


def test_sequences_may_differ_in_length():
    net, spec = net_of("recurrent")
    merged = spoilt(net.variables)
    found, _ = mended(net, spec, merged, batches=[net.batch[:40], net.batch[40:, :3]])
    assert distance(net, found, net.variables) < 2e-4


@pytest.mark.parametrize(
    "make", [kernels.scanned_stack, kernels.gru], ids=["layers", "steps"]
)
def test_programs_do_not_grow_with_the_number_of(make):
    counts = []
    for size in (4, 8):
        net = make(size)
        spec = infer_spec(net.apply_fn, net.variables, net.batch)
        with programs() as compiled:
            mended(net, spec, spoilt(net.variables))
        counts.append(sorted(compiled.names))
    assert counts[0] == counts[1]


def kept_in(loop):
    """A network with a kernel inside a loop, and one outside."""

    def apply_fn(v, x):
        return loop(jnp.tanh(x @ v["in"]), v["inside"]) @ v["out"]

    shapes = {**kernels.ENDS, "inside": (kernels.HIDDEN, kernels.HIDDEN)}
    return zoo.of_plain(apply_fn, shapes, (kernels.SAMPLES, kernels.WIDTH))


def long(x, kernel):
    step = lambda x, _: (jnp.tanh(x @ kernel), None)
    return lax.scan(step, x, length=513)[0]


def endless(x, kernel):
    goes_on = lambda state: state[0] < 3
    return lax.while_loop(goes_on, lambda s: (s[0] + 1, s[1] @ kernel), (0, x))[1]


def forking(x, kernel):
    return lax.cond(x.sum() > 0, lambda x: x @ kernel, lambda x: x, x)


STAY = {
    "is used inside a scan of more than 512 steps": long,
    "is used inside a while": endless,
    "is used inside a cond": forking,
}


@pytest.mark.parametrize("reason", STAY)
def test_what_stays_is_told_with_the_reason(reason):
    net = kept_in(STAY[reason])
    spec = infer_spec(net.apply_fn, net.variables, net.batch)
    merged = spoilt(net.variables)
    found, notes = mended(net, spec, merged)
    assert notes["inside"] == reason
    np.testing.assert_array_equal(found["inside"], merged["inside"])
    assert notes["in"] == notes["out"] == "refit by least squares"


def squashed(v):
    return jnp.tanh(v["raw"])


@pytest.mark.parametrize("kernel_of", [squashed, lambda v: v["raw"] @ v["square"]])
def test_a_kernel_that_cannot_be_solved_for_stays_and_is_told(kernel_of):
    shapes = {**kernels.RAW, "square": (kernels.HIDDEN, kernels.HIDDEN)}
    net = kernels.between_ends(kernel_of, shapes)
    spec = infer_spec(net.apply_fn, net.variables, net.batch)
    merged = spoilt(net.variables)
    found, notes = mended(net, spec, merged)
    assert notes["raw"].startswith("is computed with, in a way that cannot be undone")
    np.testing.assert_array_equal(found["raw"], merged["raw"])


def test_a_leaf_that_goes_into_something_else_too_is_no_way_to_a_kernel():
    def apply_fn(v, x):
        return jnp.tanh(x @ (v["raw"] * 2)) @ v["out"] + v["raw"].sum()

    shapes = {**kernels.RAW, "out": kernels.ENDS["out"]}
    net = zoo.of_plain(apply_fn, shapes, (kernels.SAMPLES, kernels.WIDTH))
    spec = infer_spec(net.apply_fn, net.variables, net.batch)
    _, notes = mended(net, spec, spoilt(net.variables))
    assert notes["raw"].startswith("is computed with")


def test_a_kernel_that_cannot_follow_all_the_way_comes_nearer():
    """The mean of two kernels with columns of one norm each has no such columns."""
    net, spec = net_of("standardized")
    models = [net.variables, spoilt(net.variables, 1.0, seed=3)]
    merged = jax.tree.map(lambda a, b: (a + b) / 2, *models)
    merger = Merger(spec, net.apply_fn, models, stay(spec, 2), (0.5, 0.5))
    settings = LeastSquares(target="ensemble", only=("raw", "gain"))
    found, notes = refit_layers(merger, merged, [net.batch], settings=settings)
    wanted = np.mean([net.batch @ kernels.standardized(m) for m in models], axis=0)
    error = lambda v: np.square(net.batch @ kernels.standardized(v) - wanted).mean()
    assert error(found) < error(merged)
    assert notes["raw"].startswith("refit by least squares")


@pytest.mark.parametrize(
    "name", ["scanned stack", "recurrent", "tied embedding", "direction and norm"]
)
def test_a_merge_comes_nearer_to_its_parents_and_says_how_far_it_reached(name, key):
    net, _ = net_of(name)
    models = [net.variables, spoilt(net.variables, 0.5, seed=4)]
    batches = [net.batch[:32], net.batch[32:]]
    wanted = np.mean([net.apply_fn(model, net.batch) for model in models], axis=0)
    options = {"method": "weight-zip", "key": key, "held_out": None}
    plain, fitted = (
        merge(net.apply_fn, models, batches, **options, **more)
        for more in ({}, {"refit": "least-squares", "target": "ensemble"})
    )
    error = lambda v: np.square(net.apply_fn(v, net.batch) - wanted).mean()
    assert error(fitted.variables) < error(plain.variables) / 2
    total = sum(leaf.size for leaf in jax.tree.leaves(net.variables))
    assert plain.refit_reach is None
    assert fitted.refit_reach == (
        f"The refit changed {total} of {total} parameters (100%)."
    )
