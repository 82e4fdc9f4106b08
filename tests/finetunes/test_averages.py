import numpy as np
import pytest
from finetuned import merged

from jmudsc.finetunes.averages import shares_of_window


def tree(seed, shape=(5, 4)):
    return {"kernel": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}


MODELS = [tree(seed) for seed in range(4)]


def test_equal_weights_of_copies_give_the_copy_bit_for_bit():
    copies = [tree(0) for _ in range(4)]
    found = merged(copies, weight=[0.25] * 4, normalize=False)["kernel"]
    assert found.tobytes() == copies[0]["kernel"].tobytes()


def test_a_model_that_alone_counts_is_what_comes_out():
    found = merged(MODELS, weight=[0, 1, 0, 0])["kernel"]
    assert found.tobytes() == MODELS[1]["kernel"].tobytes()


def test_weights_are_divided_by_their_sum_unless_told_otherwise():
    weights = [1, 2, 0.5, -1]
    total = sum(
        w * m["kernel"].astype(float) for w, m in zip(weights, MODELS, strict=True)
    )
    found = merged(MODELS, weight=weights)["kernel"]
    np.testing.assert_allclose(found, total / 2.5, rtol=1e-5, atol=1e-6)
    found = merged(MODELS, weight=weights, normalize=False)["kernel"]
    np.testing.assert_allclose(found, total, rtol=1e-5, atol=1e-6)


def test_equal_leaves_are_summed_where_weights_are_not_to_be_normalized():
    copies = [tree(0), tree(0)]
    found = merged(copies, weight=0.75, normalize=False)["kernel"]
    np.testing.assert_allclose(found, 1.5 * copies[0]["kernel"], rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "average", "soup"])
def test_the_mean_has_three_names(name):
    found = merged(MODELS, method="linear")["kernel"]
    from jmudsc.finetunes.merge_finetunes import merge_finetunes

    same = merge_finetunes(MODELS, method=name).variables["kernel"]
    assert found.tobytes() == same.tobytes()


def test_the_window_of_an_average_is_the_mean():
    found = merged(MODELS, method="window")["kernel"]
    mean = np.mean([m["kernel"].astype(float) for m in MODELS], axis=0)
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [None, 0.5, 0.99])
def test_ema_is_what_the_recursion_gives(decay):
    keep = 0.9 if decay is None else decay
    average = MODELS[0]["kernel"].astype(float)
    for model in MODELS[1:]:
        average = keep * average + (1 - keep) * model["kernel"].astype(float)
    found = merged(MODELS, method="window", weights="ema", decay=decay)["kernel"]
    np.testing.assert_allclose(found, average, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", ["linear", "minus-sqrt"])
def test_wsm_is_what_decayed_steps_would_have_given(decay):
    left = {"linear": lambda x: 1 - x, "minus-sqrt": lambda x: 1 - np.sqrt(x)}[decay]
    thetas = [m["kernel"].astype(float) for m in MODELS]
    decayed = thetas[0].copy()
    for number in range(1, len(thetas)):
        step = thetas[number] - thetas[number - 1]
        decayed += left(number / len(thetas)) * step
    found = merged(MODELS, method="window", weights="wsm", decay=decay)["kernel"]
    np.testing.assert_allclose(found, decayed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("models", [1, 2, 7])
@pytest.mark.parametrize(
    ("weights", "decay"), [("mean", None), ("ema", 0.3), ("wsm", "minus-sqrt")]
)
def test_the_shares_of_a_window_sum_to_one(weights, decay, models):
    shares = shares_of_window(weights, decay, models)
    assert len(shares) == models
    assert min(shares) >= 0
    assert sum(shares) == pytest.approx(1)


def test_a_linear_decay_is_the_plain_mean_and_the_square_root_weights_the_oldest_most():
    assert shares_of_window("wsm", "linear", 4) == pytest.approx([0.25] * 4)
    sqrt = shares_of_window("wsm", None, 4)
    assert sqrt == pytest.approx([0.5, 0.207, 0.159, 0.134], abs=5e-4)


@pytest.mark.parametrize("options", [{}, {"weights": "ema"}, {"weights": "wsm"}])
def test_a_run_that_stands_still_is_itself(options):
    copies = [{"kernel": MODELS[0]["kernel"].copy()} for _ in range(5)]
    found = merged(copies, method="window", **options)["kernel"]
    assert found.tobytes() == MODELS[0]["kernel"].tobytes()


def test_one_checkpoint_is_itself():
    found = merged(MODELS[:1], method="window", weights="ema")["kernel"]
    assert found.tobytes() == MODELS[0]["kernel"].tobytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"decay": 0.5},
            'decay: expected None for weights="mean", got 0.5',
        ),
        (
            {"weights": "wsm", "decay": 0.5},
            'decay: expected "linear" or "minus-sqrt" for weights="wsm", got 0.5',
        ),
        (
            {"weights": "ema", "decay": "linear"},
            "decay: expected a number in [0, 1] for weights=\"ema\", got 'linear'",
        ),
    ],
)
def test_a_decay_must_go_with_the_weights(options, said):
    with pytest.raises(ValueError, match="Correct it") as error:
        merged(MODELS, method="window", **options)
    assert str(error.value) == f"merge_finetunes: {said}. Correct it and call again."


def test_weights_that_sum_to_nothing_cannot_be_normalized():
    with pytest.raises(
        ValueError, match="weight: expected a sum other than 0"
    ) as error:
        merged(MODELS, weight=[1, -1, 0, 0])
    assert "got [1, -1, 0, 0]" in str(error.value)
