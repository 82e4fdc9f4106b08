import numpy as np
import pytest

from jmudsc.finetunes.merge_finetunes import merge_finetunes

GOAL = np.array([1.0, 0.0], np.float32)
MODELS = [
    {"w": np.array(w, np.float32)}
    for w in ([1.4, 1.0], [1.2, -1.1], [3.0, 3.0], [1, 0.5])
]


def nearness(variables):
    return -float(np.linalg.norm(np.asarray(variables["w"]) - GOAL))


def run(score, models=MODELS, **options):
    return merge_finetunes(models, method="greedy_soup", score=score, **options)


def test_models_are_kept_that_make_the_average_better():
    scores = [nearness(m) for m in MODELS]
    kept, best = [3], scores[3]
    for n in (0, 1, 2):
        mean = {"w": np.mean([MODELS[k]["w"] for k in [*kept, n]], axis=0)}
        if nearness(mean) > best:
            kept, best = [*kept, n], nearness(mean)
    result = run(nearness)
    assert result.recipe["kept"] == sorted(kept)
    assert len(kept) > 1
    np.testing.assert_allclose(
        result.variables["w"],
        np.mean([MODELS[k]["w"] for k in kept], axis=0),
        rtol=1e-6,
    )
    assert result.recipe["scores"] == pytest.approx(scores)
    assert result.recipe["score"] == pytest.approx(best)


def test_it_is_never_worse_than_the_best_model():
    for seed in range(20):
        generator = np.random.default_rng(seed)
        models = [{"w": generator.normal(size=2).astype(np.float32)} for _ in range(5)]
        result = run(nearness, models)
        assert nearness(result.variables) >= max(map(nearness, models)) - 1e-6


def test_where_nothing_is_better_one_model_is_kept():
    result = run(lambda variables: 1.0)
    assert result.recipe["kept"] == [0]
    assert np.array_equal(result.variables["w"], MODELS[0]["w"])


def test_models_may_be_gone_through_as_they_are_given():
    result = run(nearness, order="given")
    assert result.recipe["kept"][0] == 0


def test_scores_must_be_numbers():
    with pytest.raises(ValueError, match="score: expected a finite number, got nan"):
        run(lambda variables: float("nan"))
