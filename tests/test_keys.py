import re

import jax
import jaxtyping
import numpy as np
import pytest
import tiny

from jmudsc import check_spec, match, merge, random_permutations
from jmudsc.keys import check_key

NET = tiny.MLP
MODELS = [tiny.variables(NET, seed) for seed in range(2)]
BATCH = tiny.batch(NET, 0)
SPEC = tiny.spec_of("mlp")


def raw(seed):
    return jax.random.PRNGKey(seed)


@pytest.mark.parametrize("make", [raw, lambda seed: np.asarray(raw(seed))])
def test_a_raw_key_gives_what_a_typed_one_does(make, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    typed = random_permutations(SPEC, jax.random.key(3))
    jax.tree.map(
        np.testing.assert_array_equal, random_permutations(SPEC, make(3)), typed
    )


WRONG = {
    "an int": (3, "an object of type int", 3),
    "an int of numpy": (np.int64(7), "an object of type int64", 7),
    "a large int": (2**70, "an object of type int", 0),
    "a truth value": (True, "an object of type bool", 0),
    "None": (None, "None", 0),
    "a text": ("0", "an object of type str", 0),
    "several": (jax.random.split(jax.random.key(0), 3), "an array key<fry>[3]", 0),
    "floats": (np.ones(2, np.float32), "an array float32[2]", 0),
    "words of another kind": (np.arange(2), "an array int64[2]", 0),
    "too many words": (np.zeros(4, np.uint32), "an array uint32[4]", 0),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_key_is_refused(name):
    key, kind, seed = WRONG[name]
    message = (
        f"merge: key: expected one PRNG key, got {kind}. Pass jax.random.key({seed})."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        check_key("merge", key)


TAKERS = {
    "merge": lambda key: merge(NET.apply_fn, MODELS, [BATCH], key=key),
    "match": lambda key: match(SPEC, MODELS, None, method="weight-align", key=key),
    "random_permutations": lambda key: random_permutations(SPEC, key),
    "check_spec": lambda key: check_spec(SPEC, NET.apply_fn, MODELS[0], BATCH, key=key),
}


@pytest.mark.parametrize("name", TAKERS)
def test_whoever_takes_a_key_checks_it(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=f"^{name}: key: expected one PRNG key"):
        TAKERS[name](0)
