import numpy as np
import pytest

from jmudsc.finetunes.leaf_layout import Layout, layout_of


@pytest.mark.parametrize(
    ("path", "shape", "letters"),
    [
        ("Dense_0/kernel", (3, 4), "io"),
        ("Dense_0/bias", (4,), "o"),
        ("attention/query/bias", (2, 4), "oo"),
        ("Embed_0/embedding", (9, 4), "oo"),
        ("pos_embed", (9, 4), "oo"),
        ("lm_head/kernel", (4, 9), "oo"),
        ("Conv_0/kernel", (3, 3, 4, 5), "iiio"),
        ("Conv_0/kernel", (3, 3, 1, 5), "oooo"),
        ("attention/query/kernel", (6, 2, 3), "ioo"),
        ("attention/out/kernel", (2, 3, 6), "iio"),
        ("layers/attention/query/kernel", (5, 6, 2, 3), "lioo"),
        ("layers/attention/out/kernel", (5, 2, 3, 6), "liio"),
        ("layers/mlp/kernel", (5, 6, 7), "lio"),
        ("experts/wi/kernel", (5, 6, 7), "bio"),
        ("model.layers.0.mlp.weight", (7, 6), "oi"),
        ("model.norm.weight", (7,), "o"),
        ("model.embed_tokens.weight", (9, 6), "oo"),
        ("conv/weight", (5, 4, 3, 3), "oiii"),
    ],
)
def test_without_a_function_names_and_ranks_say_what_the_axes_are(path, shape, letters):
    assert layout_of(path, shape, {}).letters == letters


def test_what_the_user_says_of_the_axes_counts():
    given = {"*/kernel": "oib", "*": "oo"}
    assert layout_of("a/kernel", (1, 2, 3), given).letters == "oib"
    assert layout_of("embed", (2, 3), given).letters == "oo"


@pytest.mark.parametrize("letters", ["lbio", "oilb", "iobl", "loio", "iiio"])
def test_what_is_cut_is_put_together_again(letters):
    leaf = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    layout = Layout(letters)
    matrices, runs = layout.matrices(leaf), layout.runs(leaf)
    assert matrices.shape == layout.sizes(leaf.shape)
    np.testing.assert_array_equal(layout.with_matrices(leaf * 0, matrices), leaf)
    np.testing.assert_array_equal(layout.with_runs(leaf * 0, runs), leaf)
    assert len(runs) == len(matrices)


def test_a_matrix_of_a_leaf_takes_in_what_its_letters_say():
    leaf = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    found = Layout("loio").matrices(leaf)[1]
    np.testing.assert_array_equal(found, leaf[1].transpose(1, 0, 2).reshape(4, 15))


def test_places_may_say_what_letters_cannot():
    leaf = np.arange(12.0).reshape(4, 3)
    index = np.arange(12).reshape(4, 3)[:, [2, 0]][None]  # two of three columns
    layout = Layout("oo", index)
    np.testing.assert_array_equal(layout.matrices(leaf)[0], leaf[:, [2, 0]])
    found = layout.with_matrices(leaf, -layout.matrices(leaf))
    np.testing.assert_array_equal(found, leaf * [-1, 1, -1])
    assert layout.is_matrix


def test_depth_runs_over_the_layers_of_a_leaf():
    layout = Layout("lbio")
    depths = [layout.depth((3, 2, 4, 4), n, 6) for n in range(6)]
    assert depths == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert Layout("bio").depth((3, 4, 4), 0, 3) is None
