import numpy as np

from jmudsc.merging.refit_share import refit_parameters, refit_sentence

NETWORK = {"big": np.zeros((1000, 10)), "small": np.zeros(30), "step": np.arange(50)}
FITTED, LEFT = "refit by least squares", "is used inside a while"


def test_parameters_count_and_not_leaves():
    network = {"big": np.zeros((10, 10)), "small": np.zeros(3), "step": np.arange(50)}
    done = {"small": "refit by least squares", "big": "is used inside a while"}
    assert refit_parameters(network, done) == (3, 103)


def test_how_far_a_refit_reached_is_one_sentence():
    assert refit_sentence(NETWORK, {}) is None
    assert refit_sentence(NETWORK, {"big": "rescaled"}) is None
    assert refit_sentence(NETWORK, {"small": FITTED, "big": LEFT}) == (
        "The refit changed 30 of 10,030 parameters (0%); it left kernels of which each "
        "is used inside a while."
    )
    done = {"small": f"{FITTED}; rescaled", "big": FITTED}
    assert refit_sentence(NETWORK, done) == (
        "The refit changed 10,030 of 10,030 parameters (100%)."
    )
