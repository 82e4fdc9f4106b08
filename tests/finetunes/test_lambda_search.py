import numpy as np
import pytest

from jmudsc.finetunes.merge_finetunes import merge_finetunes

BASE = {"w": np.zeros(3, np.float32)}
MODELS = [{"w": np.array(w, np.float32)} for w in ([1, 0, 0], [0, 1, 0])]


def near(scale):
    return lambda variables: -abs(float(variables["w"][0]) - scale)


def run(lambda_, **options):
    return merge_finetunes(MODELS, BASE, lambda_=lambda_, **options)


def test_the_scale_with_the_best_score_is_taken():
    result = run("search", score=near(0.62))
    assert result.recipe["lambda_"] == 0.6
    assert result.variables["w"][0] == pytest.approx(0.6)
    assert len(result.recipe["scores"]) == 15
    assert max(result.recipe["scores"], key=result.recipe["scores"].get) == "0.6"


def test_of_scales_with_one_score_the_least_is_taken():
    result = run("search", score=lambda v: 0.0, lambdas=[2, 0.5, 1])
    assert result.recipe["lambda_"] == 0.5
    assert result.recipe["scores"] == {"0.5": 0.0, "1": 0.0, "2": 0.0}


def test_the_automatic_scale_makes_the_sum_the_mean():
    mean = np.mean([m["w"] for m in MODELS], axis=0)
    np.testing.assert_array_equal(run("auto").variables["w"], mean)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"lambda_": "search"},
            'score: expected a function of variables for lambda_="search", got None',
        ),
        (
            {"lambda_": "searsh"},
            'lambda_: expected a number, "auto" or "search", got "searsh"',
        ),
        (
            {"lambda_": "search", "score": near(0), "lambdas": []},
            "lambdas: expected one or more numbers, got []",
        ),
    ],
)
def test_what_is_wrong_with_a_search_is_said(options, said):
    with pytest.raises(ValueError, match="Correct it") as error:
        run(**options)
    assert str(error.value) == f"merge_finetunes: {said}. Correct it and call again."
