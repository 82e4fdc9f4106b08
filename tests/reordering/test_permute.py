import re

import jax
import jax.numpy as jnp
import nets
import numpy as np
import oracles
import pytest
import zoo

from jmudsc import (
    Concat,
    Fixed,
    infer_spec,
    paths,
    PermutationSpec,
    permute,
    Product,
    random_permutations,
    Units,
)
from jmudsc.reordering.permute import identity
from jmudsc.spec.axes import Family
from jmudsc.spec.permutation_spec import labels_of

A, B, C = Units("a", 3), Units("b", 4), Units("c", 2)
SIZES = {"a": 3, "b": 4, "c": 2, "d": 4}


def make_spec(axes, parents=None):
    return PermutationSpec(axes, labels_of(axes, SIZES, parents or {}))


def random_leaves(spec):
    return {
        path: np.arange(np.prod([a.size for a in axes]), dtype=np.float32).reshape(
            [a.size for a in axes]
        )
        for path, axes in spec.axes.items()
    }


FLAT = make_spec(
    {
        "vector": (A,),
        "matrix": (B, A),
        "square": (A, Fixed(2), A),
        "flattened": (Product((Fixed(2), A, B)), Fixed(2)),
        "parts": (Concat((A, Fixed(2), B)), Concat((Fixed(1), A))),
        "mixed": (Product((Concat((A, C)), B)),),
        "free": (Fixed(5),),
        "scalar": (),
    }
)
NESTED = make_spec(
    {
        "heads": (Fixed(2), A, B),
        "packed": (Product((A, B)), C),
        "back": (B, A),
        "outer": (A,),
        "parts": (Concat((Product((A, B)), A)),),
    },
    {"b": ("a",)},
)
TWICE_NESTED = make_spec(
    {"all": (A, C, B), "packed": (Product((A, B, C)),), "pair": (A, B)},
    {"b": ("a",), "c": ("a", "b")},
)
TWO_PARENTS = make_spec({"all": (A, C, B), "pair": (A, B)}, {"c": ("a", "b")})
D = Units("d", 4)
STACKED = make_spec(
    {
        "stack": (Fixed(2, 0), Family(0, (B, D)), A),
        "back": (Family(0, (B, D)), A, Fixed(2, 0)),
        "flattened": (Product((Fixed(2, 0), Family(0, (B, D)), A)),),
        "three": (Fixed(3, 1), Family(1, (B, D, B)), Family(1, (Fixed(3), A, A))),
        "one": (D, A),
    }
)
SPECS = {
    "flat": FLAT,
    "stacked": STACKED,
    "nested": NESTED,
    "twice nested": TWICE_NESTED,
    "two parents": TWO_PARENTS,
}


def parents_of(spec):
    return {name: label.parents for name, label in spec.labels.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_units_move_as_the_definition_says(spec, seed):
    leaves = random_leaves(spec)
    perms = random_permutations(spec, jax.random.key(seed))
    moved = permute(spec, leaves, perms)
    for path, axes in spec.axes.items():
        expected = oracles.permuted(leaves[path], axes, perms, parents_of(spec))
        np.testing.assert_array_equal(moved[path], expected, err_msg=path)


def test_new_is_old_at_the_permutation():
    moved = permute(FLAT, random_leaves(FLAT), {"a": np.array([2, 0, 1])})
    np.testing.assert_array_equal(moved["vector"], [2, 0, 1])


@pytest.mark.parametrize(("name", "form"), nets.CASES)
def test_a_permuted_network_computes_the_same_function(name, form):
    net, spec = nets.build(name, form), nets.spec_of(name, form)
    apply = jax.jit(net.apply_fn)
    expected = apply(net.variables, net.batch)
    for seed in range(3):
        perms = random_permutations(spec, jax.random.key(seed))
        moved = permute(spec, net.variables, perms)
        assert nets.change(leaf_of(moved), leaf_of(net.variables)) > 0.1
        assert nets.close(apply(moved, net.batch), expected)


@pytest.mark.parametrize("make", zoo.NETS.values(), ids=zoo.NETS)
def test_a_network_with_unusual_symmetries_computes_the_same_function(make):
    net = make()
    spec = infer_spec(net.apply_fn, net.variables, net.batch)
    assert any(label.fixed is None for label in spec.labels.values())
    apply = jax.jit(net.apply_fn)
    expected = apply(net.variables, net.batch)
    for seed in range(3):
        perms = random_permutations(spec, jax.random.key(seed))
        moved = permute(spec, net.variables, perms)
        assert nets.close(apply(moved, net.batch), expected)


def leaf_of(variables):
    """Some leaf with a label: the last but one has always one."""
    leaves = paths.flatten(variables)
    return next(
        np.asarray(x) for p, x in leaves.items() if "fc0/b" in p or "b0_conv1" in p
    )


@pytest.mark.parametrize("name", nets.ARCHITECTURES)
def test_moving_any_site_alone_changes_the_outputs(name):
    net, spec = nets.build(name, "plain"), nets.spec_of(name, "plain")
    apply = jax.jit(net.apply_fn)
    expected = apply(net.variables, net.batch)
    for name, label in spec.labels.items():
        rotation = {name: np.roll(np.arange(label.size), 1)}
        for path, axis in label.sites:
            order = oracles.positions(spec.axes[path][axis], rotation)
            leaf = np.take(net.variables[path], order, axis=axis)
            outputs = apply({**net.variables, path: leaf}, net.batch)
            assert nets.change(outputs, expected) > 1e-4, (path, axis)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_identity_moves_nothing(spec):
    leaves = random_leaves(spec)
    for perms in (identity(spec), {}):
        moved = permute(spec, leaves, perms)
        jax.tree.map(np.testing.assert_array_equal, moved, leaves)


def test_the_inverse_permutation_undoes_a_permutation(key):
    perms = random_permutations(FLAT, key)
    inverse = {name: row.argsort() for name, row in perms.items()}
    leaves = random_leaves(FLAT)
    back = permute(FLAT, permute(FLAT, leaves, perms), inverse)
    jax.tree.map(np.testing.assert_array_equal, back, leaves)


def test_two_permutations_compose():
    leaves = random_leaves(FLAT)
    p, q = (random_permutations(FLAT, jax.random.key(seed)) for seed in (1, 2))
    both = {name: p[name][q[name]] for name in p}
    one_by_one = permute(FLAT, permute(FLAT, leaves, p), q)
    jax.tree.map(np.testing.assert_array_equal, permute(FLAT, leaves, both), one_by_one)


def test_a_missing_label_stays_in_place(key):
    perms = random_permutations(NESTED, key)
    leaves = random_leaves(NESTED)
    moved = permute(NESTED, leaves, {"b": perms["b"]})
    whole = permute(NESTED, leaves, {**identity(NESTED), "b": perms["b"]})
    jax.tree.map(np.testing.assert_array_equal, moved, whole)
    np.testing.assert_array_equal(moved["outer"], leaves["outer"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.int8, bool, np.complex64])
def test_values_are_moved_never_computed(dtype, key):
    spec = make_spec({"x": (A, B)})
    perms = random_permutations(spec, key)
    leaf = jnp.asarray(np.arange(12).reshape(3, 4) % 5 - 2, dtype)
    moved = permute(spec, {"x": leaf}, perms)["x"]
    assert moved.dtype == leaf.dtype
    expected = np.asarray(leaf)[perms["a"]][:, perms["b"]]
    np.testing.assert_array_equal(moved, expected)


def test_a_tree_keeps_its_structure(key):
    net, spec = nets.build("mlp", "nnx"), nets.spec_of("mlp", "nnx")
    moved = permute(spec, net.variables, random_permutations(spec, key))
    assert jax.tree.structure(moved) == jax.tree.structure(net.variables)
    assert type(moved) is type(net.variables)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_random_permutations_have_a_row_per_unit_of_the_parents(spec, key):
    perms = random_permutations(spec, key)
    assert list(perms) == list(spec.labels)
    for name, row in perms.items():
        assert row.dtype == np.int32
        assert row.shape == spec.row_shape(name)
        ordered = np.sort(row, axis=-1)
        np.testing.assert_array_equal(ordered, identity(spec)[name])


def test_random_permutations_follow_the_key():
    first, again, other = (
        random_permutations(TWICE_NESTED, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any((first[name] != other[name]).any() for name in first)


def test_every_permutation_is_drawn():
    spec = make_spec({"x": (A,)})
    drawn = {
        tuple(random_permutations(spec, jax.random.key(seed))["a"])
        for seed in range(60)
    }
    assert len(drawn) == 6


def test_a_spec_without_labels_has_no_permutations(key):
    spec = make_spec({"x": (Fixed(3),)})
    assert random_permutations(spec, key) == {}
    assert permute(spec, {"x": np.ones(3)}, {})["x"].sum() == 3


def refused(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_permutations_that_do_not_fit_are_all_listed():
    spec = make_spec({"x": (A, B, C)}, {"b": ("a",)})
    perms = {
        "c": np.array([1, 1]),
        "aa": np.arange(3),
        "zzzzz": np.arange(3),
        "a": np.arange(4),
        "b": np.tile([1, 2, 3, 4], (3, 1)),
    }
    message = """\
permute: expected permutations that fit the spec, got others:
  c: a row is no permutation of 0..1
  aa: is no label of the spec; did you mean "a"?
  zzzzz: is no label of the spec
  a: expected shape (3,), got (4,)
  b: a row is no permutation of 0..3
Draw them with random_permutations(spec, key)."""
    with refused(message):
        permute(spec, {"x": np.ones((3, 4, 2))}, perms)


def test_a_nested_label_needs_a_row_per_unit_of_its_outer_labels():
    message = """\
permute: expected permutations that fit the spec, got others:
  b: expected shape (3, 4), got (4,)
Draw them with random_permutations(spec, key)."""
    with refused(message):
        permute(NESTED, random_leaves(NESTED), {"b": np.arange(4)})


def test_variables_the_spec_does_not_fit_are_refused(key):
    spec = make_spec({"x": (A,)})
    message = """\
permute: expected variables that the spec fits, got others:
  x: the spec says shape (3,), got (4,)
Derive it from these variables with infer_spec."""
    with refused(message):
        permute(spec, {"x": np.ones(4)}, random_permutations(spec, key))
