from jmudsc.experiments.accuracy import Scores
from jmudsc.experiments.class_split_conclusions import conclusions


def run(**joint):
    return {n.replace("_", "-"): Scores(x, (x, x)) for n, x in joint.items()}


def test_differences_are_paired_and_have_a_standard_error():
    """By hand: differences 0.1 and 0.3, deviation 0.2 / sqrt 2, its error 0.1."""
    runs = [
        run(mudsc_zip=0.7, weight_zip=0.6),
        run(mudsc_zip=0.9, weight_zip=0.6),
    ]
    assert conclusions(runs) == ["mudsc-zip over weight-zip: +0.200 ± 0.100."]
    assert conclusions(runs[:1]) == ["mudsc-zip over weight-zip: +0.100."]
    assert conclusions([run(average=0.5)]) == []


def test_the_share_of_the_gap_is_that_of_the_means():
    runs = [
        run(mudsc_zip=0.6)
        | {
            "all classes": Scores(1.0, (1.0,)),
            "mudsc-zip + refit by task": Scores(0.7, (1.0,)),
        },
        run(mudsc_zip=0.8)
        | {
            "all classes": Scores(1.0, (1.0,)),
            "mudsc-zip + refit by task": Scores(1.0, (1.0,)),
        },
    ]
    assert conclusions(runs)[-1] == (
        "mudsc-zip + refit by task closes 50% of the gap of 0.300 between mudsc-zip "
        "and one network trained on all classes."
    )
