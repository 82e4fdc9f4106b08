"""Plant a permutation in a network and find it again: the one known right answer."""

import functools

import jax
import nets
import numpy as np
import pytest
from flax import nnx

from jmudsc import (
    collect,
    combine,
    infer_spec,
    match,
    merge,
    paths,
    permute,
    random_permutations,
)

METHODS = ("weight-align", "activation-align", "mudsc-align")


def batches_for(net, count=2, size=32):
    generator = np.random.default_rng(5)
    shape = (count, size, *net.batch.shape[1:])
    return list(generator.normal(size=shape).astype(np.float32))


@functools.cache
def planted(name):
    """A network, the same with its units permuted, and what both do on batches."""
    net, spec = nets.build(name, "plain"), nets.spec_of(name, "plain")
    perms = random_permutations(spec, jax.random.key(7))
    models = [net.variables, permute(spec, net.variables, perms)]
    return spec, perms, models, collect(spec, net.apply_fn, models, batches_for(net))


def alive(moments, perms):
    """Per label which units of the second model ever change."""
    variances = {n: np.diagonal(m.comoment) / m.count for n, m in moments.items()}
    return {n: variances[n][len(perms[n]) :] > 1e-9 for n in perms}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", nets.ARCHITECTURES)
def test_a_planted_permutation_is_found(name, method):
    spec, perms, models, moments = planted(name)
    found = match(spec, models, moments, method=method, key=jax.random.key(1))
    for label, perm in perms.items():
        first, second = found.assignment[label]
        np.testing.assert_array_equal(first, np.arange(len(perm)))
        seen = slice(None)
        if method == "activation-align":  # units that never change are all alike
            seen = alive(moments, perms)[label]
            assert seen.mean() > 0.8
        np.testing.assert_array_equal(second[seen], perm[seen], err_msg=label)
    if method != "activation-align":
        merged = combine(spec, models, found.assignment)
        for path, leaf in models[0].items():
            np.testing.assert_allclose(merged[path], leaf, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", nets.ARCHITECTURES)
def test_merging_by_activations_keeps_the_function(name):
    """Units that never change may be paired at will only if they never fire."""
    spec, perms, models, moments = planted(name)
    found = match(
        spec, models, moments, method="activation-align", key=jax.random.key(1)
    )
    merged = combine(spec, models, found.assignment)
    still = {label for label, units in alive(moments, perms).items() if not units.all()}
    for path, axes in spec.axes.items():
        if not still & {name for axis in axes for name in axis.labels()}:
            np.testing.assert_allclose(merged[path], models[0][path], rtol=1e-6)


@pytest.mark.parametrize("form", nets.FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_merging_a_network_with_itself_permuted_gives_it_back(form, method, key):
    net, spec = nets.build("mlp", form), nets.spec_of("mlp", form)
    perms = random_permutations(spec, key)
    other = permute(spec, net.variables, perms)
    result = merge(
        net.apply_fn,
        [net.variables, other],
        batches_for(net),
        method=method,
        key=key,
    )
    assert result.spec == spec
    for label, perm in perms.items():
        np.testing.assert_array_equal(result.assignment[label][1], perm)
    before, after = paths.flatten(net.variables), paths.flatten(result.variables)
    assert jax.tree.structure(result.variables) == jax.tree.structure(net.variables)
    for path in before:
        np.testing.assert_allclose(after[path], before[path], rtol=1e-6)


def test_a_pure_dict_of_an_nnx_network_is_merged_too(key):
    net = nets.build("mlp", "nnx")
    pure = nnx.to_pure_dict(net.variables)
    spec = infer_spec(net.apply_fn, pure, net.batch)
    other = permute(spec, pure, random_permutations(spec, key))
    result = merge(net.apply_fn, [pure, other], batches_for(net), key=key)
    outputs = [net.apply_fn(v, net.batch) for v in (result.variables, pure)]
    assert nets.change(*outputs) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_permutations_planted_in_three_models_are_all_found(method, key):
    net, spec = nets.build("vgg_max", "plain"), nets.spec_of("vgg_max", "plain")
    perms = [random_permutations(spec, jax.random.key(seed)) for seed in (1, 2)]
    models = [net.variables, *(permute(spec, net.variables, p) for p in perms)]
    moments = collect(spec, net.apply_fn, models, batches_for(net))
    found = match(spec, models, moments, method=method, key=key)
    for label in spec.labels:
        for planted_in, row in zip(perms, found.assignment[label][1:], strict=True):
            np.testing.assert_array_equal(row, planted_in[label])


@pytest.mark.parametrize("method", METHODS)
def test_heads_and_the_channels_in_them_are_found(method, key):
    """Attention as a plain function: heads, and channels anew for every head."""

    def apply_fn(v, x):
        def project(name):
            y = x @ v[name].reshape(6, 12) + v[f"{name}_bias"].reshape(1, 1, 12)
            return y.reshape(*x.shape[:2], 3, 4)

        q, k, value = map(project, ("query", "key", "value"))
        scores = jax.nn.softmax(jax.numpy.einsum("bqhd,bkhd->bhqk", q, k) / 2)
        y = jax.numpy.einsum("bhqk,bkhd->bqhd", scores, value)
        return jax.numpy.einsum("bqhd,hde->bqe", y, v["out"])

    shapes = {"query": (6, 3, 4), "key": (6, 3, 4), "value": (6, 3, 4)}
    shapes |= {f"{name}_bias": (3, 4) for name in shapes}
    leaves = nets.random_leaves({**shapes, "out": (3, 4, 5)}, "attention")
    net = nets.Net(apply_fn, leaves, np.ones((2, 7, 6), np.float32))
    spec = infer_spec(apply_fn, leaves, net.batch)
    assert sorted((x.size, x.parents) for x in spec.labels.values()) == [
        (3, ()),
        (4, ("P_0",)),
        (4, ("P_0",)),
    ]
    perms = random_permutations(spec, key)
    models = [leaves, permute(spec, leaves, perms)]
    moments = collect(spec, apply_fn, models, batches_for(net))
    found = match(spec, models, moments, method=method, key=key)
    for label, perm in perms.items():
        np.testing.assert_array_equal(found.assignment[label][1], perm, err_msg=label)
