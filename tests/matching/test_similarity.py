import dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc import (
    align,
    Fixed,
    infer_spec,
    PermutationSpec,
    permute,
    random_permutations,
    Units,
)
from jmudsc.matching.cross_moments import correlation
from jmudsc.matching.similarity import weight_similarity
from jmudsc.reordering.permute import identity
from jmudsc.spec.permutation_spec import labels_of, Site


def draw_models(name, count):
    """Draw models as leaf path -> array."""
    net = tiny.NETS[name]
    return [
        {path: jnp.asarray(leaf) for path, leaf in tiny.variables(net, seed).items()}
        for seed in range(count)
    ]


def draw_assignment(spec, kind, models, seed=0):
    generator = np.random.default_rng(seed)
    found = {}
    for name, label in spec.labels.items():
        shape = (models, label.size)
        match kind:
            case "identity":
                rows = np.tile(np.arange(label.size), (models, 1))
            case "permutations":
                rows = [generator.permutation(label.size) for _ in range(models)]
            case "zips":  # every merged unit has a member, in some model
                flat = np.concatenate(
                    [
                        np.arange(label.size),
                        generator.integers(label.size, size=(models - 1) * label.size),
                    ]
                )
                rows = generator.permutation(flat).reshape(shape)
        found[name] = np.asarray(rows, np.int32)
    return found


@pytest.mark.parametrize("kind", ["identity", "permutations", "zips"])
@pytest.mark.parametrize(("name", "models"), [("mlp", 3), ("cnn", 2), ("recurrent", 2)])
def test_weight_similarity_is_the_correlation_of_weight_vectors(name, kind, models):
    spec = tiny.spec_of(name)
    drawn = draw_models(name, models)
    assignment = draw_assignment(spec, kind, models)
    for label in spec.labels:
        similarity = weight_similarity(spec, drawn, assignment, label)
        vectors = dense.weight_vectors(spec, drawn, assignment, label)
        assert similarity.dtype == np.float32
        np.testing.assert_allclose(similarity, dense.pearson(vectors), atol=2e-6)


def test_a_weight_vector_has_everything_but_running_statistics():
    spec, (v,) = tiny.spec_of("cnn"), draw_models("cnn", 1)
    assignment = draw_assignment(spec, "identity", 1)
    channel = tiny.label_at(spec, "norm/mean", 0)
    vectors = np.concatenate(
        [
            np.asarray(v["a/kernel"]).reshape(-1, 6),
            np.moveaxis(np.asarray(v["b/kernel"]), 2, -1).reshape(-1, 6),
            v["norm/scale"][None],
            v["norm/bias"][None],
        ]
    ).T
    expected = dense.pearson(vectors)
    for shift in (0, 7):  # running statistics make no difference
        moved = {**v, "norm/mean": v["norm/mean"] + shift}
        similarity = weight_similarity(spec, [moved], assignment, channel)
        np.testing.assert_allclose(similarity, expected, atol=2e-6)


def test_the_other_axis_of_a_square_kernel_is_in_the_merged_order():
    spec, drawn = tiny.spec_of("recurrent"), draw_models("recurrent", 2)
    (label,) = spec.labels
    rows = draw_assignment(spec, "permutations", 2)
    moved = []
    for v, row in zip(drawn, rows[label], strict=True):
        leaves = {path: np.asarray(leaf) for path, leaf in v.items()}
        order = np.argsort(row)
        moved += [
            leaves["in/kernel"].T,
            leaves["in/bias"][:, None],
            leaves["out/kernel"],
            leaves["state/kernel"][:, order],
            leaves["state/kernel"].T[:, order],
        ]
    vectors = np.block([moved[:5], moved[5:]])
    similarity = weight_similarity(spec, drawn, rows, label)
    np.testing.assert_allclose(similarity, dense.pearson(vectors), atol=2e-6)


@pytest.mark.parametrize("name", tiny.NETS)
def test_a_planted_permutation_has_similarity_1_where_it_is_undone(name, key):
    spec, (v,) = tiny.spec_of(name), draw_models(name, 1)
    perms = random_permutations(spec, key)
    drawn = [v, permute(spec, v, perms)]
    stay = random_permutations(spec, key)
    for rows in stay.values():
        rows[...] = np.arange(rows.shape[-1])
    assignment = {label: np.stack([stay[label], perms[label]]) for label in perms}
    for label, record in spec.labels.items():
        similarity = weight_similarity(spec, drawn, assignment, label)
        if similarity is None:
            continue
        shape = (2, *spec.row_shape(label))
        grid = similarity.reshape(shape + shape)
        # Unit k of the copy is unit perm[k] of the parent, its parents' units likewise.
        for place in np.ndindex(shape[1:]):
            source, parents = [], record.parents
            for up, unit in zip((*parents, label), place, strict=True):
                outer = [source[parents.index(p)] for p in spec.labels[up].parents]
                source.append(int(perms[up][(*outer, unit)]))
            reached = grid[(0, *source, 1, *place)]
            np.testing.assert_allclose(reached, 1, atol=1e-5)


def test_a_nested_label_is_compared_in_the_parents_own_order():
    """Channels of other heads are compared too: heads are not paired yet."""
    spec, drawn = tiny.spec_of("attention"), draw_models("attention", 2)
    head, value = (axis.label for axis in spec.axes["v/kernel"][1:])
    vectors = np.concatenate(
        [
            np.concatenate(
                [
                    np.asarray(v["v/kernel"]).reshape(6, -1),
                    np.asarray(v["out/kernel"]).reshape(-1, 2).T,
                ]
            ).T
            for v in drawn
        ]
    )
    for seed in range(2):  # wherever the heads have gone
        generator = np.random.default_rng(seed)
        assignment = {
            name: generator.permuted(
                np.broadcast_to(
                    np.arange(label.size, dtype=np.int32), (2, *spec.row_shape(name))
                ),
                axis=-1,
            )
            for name, label in spec.labels.items()
        }
        similarity = weight_similarity(spec, drawn, assignment, value)
        np.testing.assert_allclose(similarity, dense.pearson(vectors), atol=2e-6)
    assert weight_similarity(spec, drawn, assignment, head) is None


def test_a_label_on_running_statistics_alone_has_no_weight_similarity():
    axes = {"mean": (Units("P", 3),), "bias": (Fixed(2),)}
    spec = PermutationSpec(
        axes, labels_of(axes, {"P": 3}, {}), statistics=frozenset({"mean"})
    )
    v = {"mean": jnp.arange(3.0), "bias": jnp.ones(2)}
    rows = {"P": np.zeros((2, 3), np.int32)}
    assert weight_similarity(spec, [v, v], rows, "P") is None


def test_bfloat16_weights_are_compared_in_float32():
    spec = tiny.spec_of("mlp")
    drawn = [
        {path: leaf.astype(jnp.bfloat16) for path, leaf in v.items()}
        for v in draw_models("mlp", 2)
    ]
    assignment = draw_assignment(spec, "zips", 2)
    for label in spec.labels:
        similarity = weight_similarity(spec, drawn, assignment, label)
        vectors = dense.weight_vectors(spec, drawn, assignment, label)
        np.testing.assert_allclose(similarity, dense.pearson(vectors), atol=2e-6)


def test_units_without_weights_of_their_own_have_similarity_0():
    spec, drawn = tiny.spec_of("mlp"), draw_models("mlp", 2)
    dead = {
        "a/kernel": drawn[1]["a/kernel"].at[:, 3].set(0),
        "a/bias": drawn[1]["a/bias"].at[3].set(0),
        "b/kernel": drawn[1]["b/kernel"].at[3].set(0),
    }
    assignment = draw_assignment(spec, "identity", 2)
    label = tiny.label_at(spec, "a/bias", 0)
    similarity = weight_similarity(spec, [drawn[0], drawn[1] | dead], assignment, label)
    assert (similarity[11] == 0).all()
    assert (similarity[:, 11] == 0).all()
    assert (similarity[:3] != 0).sum() == 3 * 15


def test_correlation_is_exactly_symmetric_and_bounded():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(30, 12)).astype(np.float32)
    x[:, 6:] = x[:, :6] * np.float32(1e-8)  # small units are units too
    covariance = (x - x.mean(0)).T @ (x - x.mean(0)) / 30
    result = np.asarray(correlation(jnp.asarray(x.mean(0)), jnp.asarray(covariance)))
    assert (result == result.T).all()
    assert np.abs(result).max() <= 1
    np.testing.assert_allclose(result, dense.pearson(x.T), atol=1e-5)


def test_identical_models_match_themselves():
    spec, (v,) = tiny.spec_of("cnn"), draw_models("cnn", 1)
    assignment = draw_assignment(spec, "identity", 2)
    for label in spec.labels:
        similarity = weight_similarity(spec, [v, v], assignment, label)
        units = spec.labels[label].size
        np.testing.assert_array_equal(align(similarity, 2), [np.arange(units)] * 2)


def test_every_site_of_a_label_counts():
    spec, (v,) = tiny.spec_of("cnn"), draw_models("cnn", 1)
    assignment = draw_assignment(spec, "identity", 1)
    for label, record in spec.labels.items():
        before = weight_similarity(spec, [v], assignment, label)
        for site in record.sites:
            noisy = v | {
                site.path: v[site.path]
                * jnp.linspace(1, 2, v[site.path].size).reshape(v[site.path].shape)
            }
            after = weight_similarity(spec, [noisy], assignment, label)
            changed = bool((before != after).any())
            assert changed == (site.path not in spec.statistics), Site(*site)


@pytest.mark.parametrize("within", [False, True])
def test_a_leaf_without_entries_says_nothing(within):
    def apply_fn(v, x):
        nothing = jnp.zeros((len(x), 0)) @ v["nothing"]
        return jnp.maximum(x @ v["in"] + nothing, 0) @ v["out"]

    draw = np.random.default_rng(0)
    shapes = {"in": (5, 6), "nothing": (0, 6), "out": (6, 2)}
    models = [
        {n: draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}
        for _ in range(2)
    ]
    spec = infer_spec(apply_fn, models[0], np.ones((7, 5), np.float32))
    (label,) = spec.labels
    assert Site("nothing", 1) in spec.labels[label].sites
    start = {label: np.tile(np.arange(6, dtype=np.int32), (2, 1))}
    found = weight_similarity(spec, models, start, label, within=within)
    vectors = [np.concatenate([m["in"], m["out"].T]).T for m in models]
    expected = np.corrcoef(np.concatenate(vectors).astype(float))
    np.testing.assert_allclose(found[:6, 6:], expected[:6, 6:], atol=1e-5)


def test_both_sides_of_a_square_kernel_with_groups_are_in_the_right_order():
    """The groups of the side that is read stay; those of the other side are moved."""

    def apply_fn(v, x):
        h = (x @ v["in"]).reshape(-1, 3, 4)
        h = h / jnp.sqrt(1 + (h**2).mean(axis=-1, keepdims=True))
        h = h.reshape(-1, 12)
        return (h + jnp.tanh(h @ v["square"])) @ v["out"]

    draw = np.random.default_rng(3)
    shapes = {"in": (5, 12), "square": (12, 12), "out": (12, 2)}
    leaves = {n: draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    spec = infer_spec(apply_fn, leaves, np.ones((7, 5), np.float32))
    group, channel = sorted(spec.labels, key=lambda n: len(spec.labels[n].parents))
    assert spec.labels[channel].parents == (group,)
    perms = random_permutations(spec, jax.random.key(2))
    models = [leaves, permute(spec, leaves, perms)]
    rows = {n: np.stack([identity(spec)[n], perm]) for n, perm in perms.items()}
    similarity = weight_similarity(spec, models, rows, channel)
    units = np.arange(12).reshape(3, 4)
    where = perms[group][:, None], perms[channel][perms[group]]
    paired = similarity[units[where].reshape(-1), 12 + np.arange(12)]
    np.testing.assert_allclose(paired, 1, atol=1e-5)
