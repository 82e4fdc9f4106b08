"""Names of adapters find the leaves that they are of, or are said to have none."""

import pytest
from loras import draw, pair, peft, tree

from jmudsc.lora.fold_lora import fold_lora
from jmudsc.lora.targets import Target, targets_of

WHERE = "here"


def found(adapter, leaves, rename=None):
    return targets_of(WHERE, adapter, leaves, rename).updates


def refused(adapter, leaves, rename=None):
    with pytest.raises(ValueError, match="here: ") as error:
        targets_of(WHERE, adapter, leaves, rename)
    return str(error.value)


@pytest.mark.parametrize(
    ("module", "path"),
    [
        ("model.layers.3.q", "model.layers.3.q.weight"),
        ("model.layers.3.q", "model/layers/3/q/weight"),
        ("model.layers.3.q", "params/model/layers_3/q/kernel"),
        ("transformer.h.0.c_attn", "h.0.c_attn.weight"),
        ("embed", "embed/embedding"),
        ("layers.3.q", "layers/3/q/base_module/kernel"),
    ],
)
def test_names_are_found_by_what_they_have_in_common(tmp_path, module, path):
    adapter = peft(tmp_path, pair(1, module, 5, 7))
    leaves = [path, "model.layers.33.q.weight", "layers/30/q/kernel", "other.embed.b"]
    assert found(adapter, leaves)[module].path == path


def test_a_whole_name_comes_before_one_with_more_in_front(tmp_path):
    adapter = peft(tmp_path, pair(1, "q", 5, 7))
    assert found(adapter, ["q.weight", "other.q.weight"])["q"].path == "q.weight"


def test_names_that_have_no_leaf_are_listed_with_the_nearest(tmp_path):
    arrays = pair(1, "layer.q_prj", 5, 7) | pair(2, "layer.k", 5, 7)
    adapter = peft(tmp_path, arrays | {"layer.k.lora_B.bias": draw(0, 7)})
    assert refused(adapter, ["layer.q_proj.weight", "layer.k.weight"]) == (
        f"here: expected a leaf of the base for everything in {tmp_path}, got none for "
        "2 of 3. Pass the base that it was trained on, or rename=, name in the adapter "
        "-> path in the base:\n"
        "  the bias of layer.k\n"
        '  layer.q_prj; did you mean "layer.q_proj.weight"?'
    )


def test_names_that_have_several_leaves_are_listed(tmp_path):
    adapter = peft(tmp_path, pair(1, "q", 5, 7))
    assert refused(adapter, ["a/q/kernel", "b/q/kernel"]) == (
        f"here: expected one leaf of the base for everything in {tmp_path}, got "
        "several for 1 of 1. Say by rename= which are meant:\n"
        "  q: a/q/kernel, b/q/kernel"
    )
    chosen = found(adapter, ["a/q/kernel", "b/q/kernel"], {"q": "b/q"})
    assert chosen["q"].path == "b/q/kernel"


def test_two_names_of_one_leaf_are_refused(tmp_path):
    adapter = peft(tmp_path, pair(1, "h.0.q", 5, 7) | pair(2, "h.1.q", 5, 7))
    leaves, rename = ["q/kernel"], {"h.*.q": "q/kernel[*]"}
    assert {x.layer for x in found(adapter, leaves, rename).values()} == {0, 1}
    assert refused(adapter, leaves, {"h.0.q": "q", "h.1.q": "q"}) == (
        f"here: expected one name in {tmp_path} for each leaf of the base, got several "
        "for 1. Correct rename:\n  q/kernel: h.0.q and h.1.q"
    )


def test_rules_that_cannot_be_are_refused(tmp_path):
    adapter = peft(tmp_path, pair(1, "h.0.q", 5, 7))
    assert refused(adapter, ["q/kernel"], {"h.*.q": "q"}) == (
        'here: expected as many "*" in a new path as in its pattern, got another '
        'number in 1 of 1 rules. Correct rename:\n  "h.*.q" has 1 "*" and "q" 0'
    )
    assert refused(adapter, ["q/kernel"], {"h.*.k": "k/*"}) == (
        "here: expected patterns that match a name of the adapter, got 1 of 1 in "
        'rename that match none. Correct them:\n  "h.*.k"; did you mean "h.0.q"?'
    )


def test_rules_for_layers_are_for_all_their_leaves(tmp_path):
    arrays = pair(1, "h.1.q", 5, 7) | {"h.1.q.lora_B.bias": draw(0, 7)}
    arrays |= {"h.1.norm.weight": draw(1, 5), "top.weight": draw(2, 3, 5)}
    adapter = peft(tmp_path, arrays, lora_bias=True)
    leaves = ["params/h/q/kernel", "params/h/q/bias", "params/h/norm/scale", "p/head/w"]
    rename = {
        "h.*.q": "params/h/q/kernel[*]",
        "h.*.norm": "params/h/norm[*]",
        "top.weight": "p/head/w",
    }
    targets = targets_of(WHERE, adapter, leaves, rename)
    assert targets.updates["h.1.q"] == Target("params/h/q/kernel", 1)
    assert targets.biases["h.1.q"] == Target("params/h/q/bias", 1)
    assert targets.replaced == {
        "h.1.norm.weight": Target("params/h/norm/scale", 1),
        "top.weight": Target("p/head/w"),
    }
    targets = targets_of(WHERE, adapter, leaves, {"h.*.q": "params/h/q[*]"} | rename)
    assert targets.biases["h.1.q"] == Target("params/h/q/bias", 1)


def test_factors_that_do_not_fit_their_leaves_are_listed(tmp_path):
    arrays = pair(1, "q", 5, 7) | pair(2, "k", 5, 7) | pair(3, "h.4.v", 5, 7)
    arrays |= {"conv.lora_A.weight": draw(4, 2, 3, 3, 3), "head.weight": draw(6, 4, 5)}
    arrays["conv.lora_B.weight"] = draw(5, 4, 2, 1, 1)
    arrays["k.lora_B.bias"] = draw(7, 7)
    base = {
        "q.weight": draw(0, 7, 6),
        "k.weight": draw(0, 7, 5),
        "k.bias": draw(0, 6),
        "v/kernel": draw(0, 4, 5, 7),
        "conv.weight": draw(0, 4, 3, 5, 5),
        "head/kernel": draw(0, 4, 5),
    }
    adapter = peft(tmp_path, arrays, lora_bias=True)
    with pytest.raises(ValueError, match="fold_lora: ") as error:
        fold_lora(adapter, base, rename={"h.*.v": "v/kernel[*]"})
    assert str(error.value) == (
        f"fold_lora: expected {tmp_path} to fit the leaves of the base, got 5 "
        "differences. Pass the base that it was trained on; axes= says of a leaf which "
        "of its axes go in and out:\n"
        "  head/kernel of shape [4, 5], in head.weight [4, 5]\n"
        "  conv.weight of shape [4, 3, 5, 5], in conv A [3, 3, 3, 2] and B [2, 4]\n"
        "  v/kernel of shape [4, 5, 7] has no layer 4\n"
        "  q.weight of shape [7, 6], in q A [5, 2] and B [2, 7]\n"
        "  k.bias of shape [6], in k a bias [7]"
    )


def test_axes_are_checked():
    adapter, base = tree(0, {"x": (5, 7)}), {"x/kernel": draw(0, 5, 7)}
    with pytest.raises(ValueError, match="fold_lora: ") as error:
        fold_lora(adapter, base, axes={"y": "io", "x/kernel": "iz"})
    assert str(error.value) == (
        "fold_lora: expected letters of the axes of leaves, got 2 problems. Correct "
        'axes:\n  axes: pattern "y" matches no leaf\n  axes["x/kernel"]: expected the '
        'letters "l" (stacked layers), "b" (apart), "i" (in) and "o" (out), got \'iz\''
    )
