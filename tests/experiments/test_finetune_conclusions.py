from jmudsc.experiments.finetune_accuracies import Tuned
from jmudsc.experiments.finetune_conclusions import conclusions


def known(mean, way="some", samples=None):
    return Tuned((mean, mean), way, samples)


def run(linear, ties, tuned=0.9, **more):
    plain = {"linear": known(linear), "ties": known(ties)}
    named = {name: known(mean, samples=32) for name, mean in more.items()}
    named = {f"{name}, 32 images": each for name, each in named.items()}
    return {"single fine-tunes": known(tuned, way=""), **plain, **named}


def test_methods_without_data_are_ahead_by_two_standard_errors_or_not():
    """By hand: gains 0.1 and 0.3, error 0.1; then 0.1 and 0.2, error 0.05."""
    said = "Ahead of linear by more than two standard errors: ties (+0.150 ± 0.050)."
    first, second = run(0.5, 0.6), run(0.5, 0.8)
    assert conclusions([], [first, second])[0] == (
        "No method without data is ahead of linear by two standard errors."
    )
    assert conclusions([], [first, run(0.5, 0.7)])[0] == said


def test_the_best_of_all_closes_a_share_of_the_gap_of_the_means():
    runs = [run(0.5, 0.6), run(0.5, 0.8)]
    assert conclusions([], runs)[-1] == (
        "ties closes 50% of the gap of 0.400 between linear and the single fine-tunes."
    )
    assert conclusions([], [run(0.9, 0.5)]) == []  # no gap, and one seed


def test_methods_with_images_are_compared_at_the_same_number_of_them():
    runs = [run(0.5, 0.5, lot=0.7, regmean=0.6), run(0.5, 0.5, lot=0.9, regmean=0.6)]
    assert "lot, 32 images over regmean, 32 images: +0.200 ± 0.100." in conclusions(
        [32], runs
    )
    assert conclusions([16], runs)[1:] == conclusions([], runs)[1:]
