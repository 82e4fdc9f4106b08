"""The conformance table: every symmetry of many networks, derived and proved."""

import functools

import jax
import nets
import nets_attention
import nets_conv
import nets_experts
import nets_feedforward
import nets_gradients
import nets_libraries
import nets_loops
import numpy as np
import pytest
from conformance import nesting

from jmudsc import (
    collect,
    infer_spec,
    match,
    paths,
    permute,
    random_permutations,
    read_spec,
    Site,
)
from jmudsc.derivation.program import trace
from jmudsc.derivation.taps import find_taps

MODULES = (
    nets_feedforward,
    nets_conv,
    nets_attention,
    nets_experts,
    nets_loops,
    nets_libraries,
    nets_gradients,
)
ROWS = {name: row for module in MODULES for name, row in module.ROWS.items()}

# A permuted network sums the same numbers in another order: outputs may differ by a
# few units in the last place of float32, 2**-23 of the largest, at every layer. Here
# networks have up to some twenty layers.
TOLERANCE = 32 * 2.0**-23

every_row = pytest.mark.parametrize("name", ROWS)


@pytest.fixture(autouse=True)
def _as_users_write():
    """Networks may add a bias without writing the broadcast out."""
    with jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def network(name):
    net = ROWS[name].make()
    return net, infer_spec(net.apply_fn, net.variables, net.batch)


def sites_of(net):
    leaves = paths.flatten(net.variables).items()
    return {Site(path, axis) for path, leaf in leaves for axis in range(np.ndim(leaf))}


@every_row
def test_a_network_has_its_full_permutation_group(name):
    _, spec = network(name)
    assert nesting(spec, spec.labels) == ROWS[name].expected


@every_row
def test_every_axis_is_labelled_or_listed_as_fixed(name):
    net, spec = network(name)
    shapes = {path: np.shape(x) for path, x in paths.flatten(net.variables).items()}
    assert {p: tuple(a.size for a in axes) for p, axes in spec.axes.items()} == shapes
    labelled = {site for label in spec.labels.values() for site in label.sites}
    assert labelled | spec.fixed.keys() == sites_of(net)
    for site, why in spec.fixed.items():
        assert why.startswith("in part: ") == (site in labelled)
        assert why.removeprefix("in part: ")


@every_row
def test_a_permuted_network_computes_the_same_function(name):
    net, spec = network(name)
    apply = jax.jit(net.apply_fn)
    expected = apply(net.variables, net.batch)
    for seed in range(3):
        perms = random_permutations(spec, jax.random.key(seed))
        outputs = apply(permute(spec, net.variables, perms), net.batch)
        assert nets.change(outputs, expected) < TOLERANCE


@every_row
def test_a_planted_element_is_recovered(name):
    net, spec = network(name)
    perms = random_permutations(spec, jax.random.key(7))
    models = [net.variables, permute(spec, net.variables, perms)]
    moments = collect(spec, net.apply_fn, models, [net.batch])
    found = match(spec, models, moments, method="mudsc-align", key=jax.random.key(1))
    for label, perm in perms.items():
        np.testing.assert_array_equal(found.assignment[label][1], perm, err_msg=label)


@every_row
def test_every_label_is_tapped_itself_or_by_what_is_nested_in_it(name):
    net, spec = network(name)
    taps = find_taps(trace(net.apply_fn, net.variables, net.batch), spec)
    seen = {n for n, where in taps.items() if where}
    seen |= {parent for n in seen for parent in spec.labels[n].parents}
    seen |= {n for n, label in spec.labels.items() if label.fixed}
    assert nesting(spec, spec.labels.keys() - seen) == ROWS[name].unseen


@every_row
def test_a_printed_spec_is_read_back(name):
    net, spec = network(name)
    assert read_spec(str(spec), net.apply_fn, net.variables, net.batch) == spec


def test_the_table_has_networks_of_every_library_and_says_what_is_missed():
    assert len(ROWS) >= 100
    for library in ("linen", "nnx", "equinox", "haiku"):
        assert sum(library in name for name in ROWS) >= 3
    limits = {name for name, row in ROWS.items() if row.limit}
    assert limits == {
        "experts, inputs sorted",
        "shard_map, tensor parallel",
    }
