"""What PEFT writes is read, and what is not understood is refused by name."""

import re

import numpy as np
import pytest
from loras import draw, pair, peft, write_peft

from jmudsc.lora.load_lora import load_lora


def refused(folder, kind=ValueError):
    with pytest.raises(kind) as error:
        load_lora(folder)
    return str(error.value)


@pytest.mark.parametrize("prefix", [True, False])
def test_an_adapter_has_its_updates_and_stays_on_disk(tmp_path, prefix):
    arrays = pair(1, "a.q", 5, 7) | {"b.weight": draw(2, 3)}
    adapter = load_lora(write_peft(tmp_path, arrays, prefix))
    update = adapter.updates["a.q"]
    assert list(adapter.updates) == ["a.q"]
    assert (update.rank, update.scale, update.kind) == (2, 3.0, "linear")
    assert np.array_equal(update.a.read(), arrays["a.q.lora_A.weight"].T)
    assert np.array_equal(update.b.read(), arrays["a.q.lora_B.weight"].T)
    assert np.array_equal(adapter.replaced["b.weight"].read(), arrays["b.weight"])


def test_a_file_that_is_missing_is_said(tmp_path):
    assert refused(tmp_path / "none", FileNotFoundError) == (
        f"{tmp_path}/none: expected the folder of an adapter, got none. Pass the "
        "folder with adapter_config.json and adapter_model.safetensors."
    )
    assert refused(tmp_path, FileNotFoundError) == (
        f"{tmp_path}/adapter_config.json: expected the config of an adapter, got no "
        "such file. Copy adapter_config.json beside adapter_model.safetensors."
    )
    write_peft(tmp_path, {})
    (tmp_path / "adapter_model.safetensors").unlink()
    said = (
        f"{tmp_path}/adapter_model.safetensors: expected the weights of an adapter, "
        "got {}. Save it with safe_serialization=True."
    )
    assert refused(tmp_path, FileNotFoundError) == said.format("no such file")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    expected = said.format("adapter_model.bin, a pickle")
    assert refused(tmp_path, FileNotFoundError) == expected


def test_everything_that_is_wrong_with_the_arrays_is_said_at_once(tmp_path):
    arrays = {
        "lone.lora_A.weight": draw(0, 2, 5),
        "other.lora_B.weight": draw(0, 5, 2),
        "unlike.lora_A.weight": draw(0, 2, 5),
        "unlike.lora_B.weight": draw(0, 7, 3),
        "flat.lora_A.weight": draw(0, 10),
        "flat.lora_B.weight": draw(0, 7, 2),
        "window.lora_A.weight": draw(0, 2, 3, 1, 1),
        "window.lora_B.weight": draw(0, 4, 2, 3, 3),
        "half.lora_magnitude_vector": draw(0, 6),
        "x.lora_E": draw(0, 2),
        "y.lora_A.default.weight": draw(0, 2),
        **pair(1, "half", 5, 7),
        **pair(1, "deep", 5, 7, rank=3),
    }
    folder = write_peft(tmp_path, arrays, use_dora=True)
    lines = refused(folder).splitlines()
    assert lines[0] == (
        f"{tmp_path}/adapter_model.safetensors: expected the factors that its config "
        "is of, got 11 differences:"
    )
    assert sorted(lines[1:-1]) == [
        "  deep: A and B of rank 3, in the config 2",
        "  deep: no magnitude",
        "  flat: A of shape [10] and B of shape [7, 2], not gathered",
        "  half: magnitude of 6 entries for 7 outputs",
        "  lone: no B",
        "  other: no A",
        "  unlike: A of rank 2, B of rank 3",
        "  window: B of shape [4, 2, 3, 3], with a window of its own",
        "  window: no magnitude",
        "  x.lora_E: an array of a kind that is not known",
        "  y.lora_A.default.weight: an array of a kind that is not known",
    ]
    assert lines[-1] == (
        "Copy both files of one save, or fold it by the library that made it."
    )


def test_a_magnitude_that_the_config_does_not_know_of_is_refused(tmp_path):
    arrays = pair(1, "x", 5, 7) | {"x.lora_magnitude_vector": draw(0, 7)}
    said = refused(write_peft(tmp_path, arrays))
    assert "got 1 difference:\n  x: a magnitude, without use_dora\n" in said
    arrays = pair(1, "x", 5, 7) | {"x.lora_B.bias": draw(0, 6)}
    said = refused(write_peft(tmp_path, arrays, lora_bias=True))
    assert "got 1 difference:\n  x: bias of 6 entries for 7 outputs\n" in said


def test_an_adapter_without_arrays_is_refused(tmp_path):
    assert refused(write_peft(tmp_path, {})) == (
        f"{tmp_path}/adapter_model.safetensors: expected the factors that its config "
        "is of, got 1 difference:\n  no arrays at all\nCopy both files of one save, "
        "or fold it by the library that made it."
    )


@pytest.mark.parametrize(
    "kind", ["LOHA", "LOKR", "VERA", "ADALORA", "IA3", "PROMPT_TUNING", "OFT", None]
)
def test_loras_of_other_types_are_refused_by_name(tmp_path, kind):
    folder = write_peft(tmp_path, pair(1, "x", 5, 7), peft_type=kind)
    assert refused(folder) == (
        f"{tmp_path}/adapter_config.json: expected an adapter of the type LORA, got "
        f"{kind!r}. Fold it by the library that made it."
    )


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"layer_replication": [[0, 2], [1, 3]]},
            "layer_replication: [[0, 2], [1, 3]], which is not supported",
        ),
        (
            {"trainable_token_indices": [1]},
            "trainable_token_indices: [1], which is not supported",
        ),
        ({"target_parameters": ["w"]}, 'target_parameters: ["w"], which is not supp'),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens: [3], which is no"),
        ({"kasa_config": {"beta": 1}}, 'kasa_config: {"beta": 1}, which is not suppor'),
        ({"use_qalora": True}, "use_qalora: true, which is not supported"),
        ({"use_bdlora": {"a": 1}}, 'use_bdlora: {"a": 1}, which is not supported'),
        ({"of_next_year": 1}, "of_next_year: 1, which is not supported"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights: 'pissa', which changes the base; save it again with "
            "path_initial_model_for_weight_conversion",
        ),
        ({"init_lora_weights": "olora"}, "init_lora_weights: 'olora', which changes"),
        ({"r": 0}, "r: expected a whole number > 0, got 0"),
        ({"lora_alpha": "x"}, "lora_alpha: expected a number, got 'x'"),
        (
            {"rank_pattern": {"q": 0}},
            "rank_pattern: expected patterns with numbers, got {'q': 0}",
        ),
        (
            {"alpha_pattern": {"q(": 1}},
            "alpha_pattern: expected regular expressions, got 'q('",
        ),
    ],
)
def test_what_may_change_a_fold_is_refused_by_name(tmp_path, config, line):
    said = refused(write_peft(tmp_path, pair(1, "x", 5, 7), **config))
    assert said.startswith(
        f"{tmp_path}/adapter_config.json: expected a LoRA that can be folded, got 1 "
        f"key for which that is not so:\n  {line}"
    )
    assert said.endswith("\nFold it by the library that made it.")


def test_what_was_for_training_alone_is_not_refused(tmp_path):
    idle = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "someone/model",
        "target_modules": ["x"],
        "lora_dropout": 0.1,
        "init_lora_weights": "gaussian",
        "runtime_config": {"ephemeral_gpu_offload": False},
        "megatron_core": "megatron.core",
        "layer_replication": None,
        "trainable_token_indices": None,
        "use_bdlora": None,
        "loftq_config": {},
    }
    assert peft(tmp_path, pair(1, "x", 5, 7), **idle).updates.keys() == {"x"}


@pytest.mark.parametrize(("text", "said"), [("{", "JSON"), ("[]", "a mapping of keys")])
def test_a_config_that_is_none_is_said(tmp_path, text, said):
    folder = write_peft(tmp_path, pair(1, "x", 5, 7))
    (folder / "adapter_config.json").write_text(text)
    where = re.escape(f"{tmp_path}/adapter_config.json: expected {said}")
    assert re.match(where, refused(folder))


def test_the_weights_are_a_safetensors_file(tmp_path):
    folder = write_peft(tmp_path, {})
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    assert "adapter_model.safetensors: expected a whole safetensors" in refused(folder)


def test_config_keys_of_peft_are_all_known(tmp_path):
    """The keys that PEFT 0.21.2 writes for a plain adapter."""
    nothing = (
        "alora_invocation_tokens arrow_config auto_mapping corda_config eva_config "
        "exclude_modules kasa_config layer_replication layers_pattern "
        "layers_to_transform lora_ga_config megatron_config modules_to_save "
        "monteclora_config revision target_parameters trainable_token_indices "
        "use_bdlora velora_config"
    ).split()
    config = dict.fromkeys(nothing) | {
        "bias": "none",
        "ensure_weight_tying": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "use_qalora": False,
        "alpha_pattern": {},
        "rank_pattern": {},
    }
    assert peft(tmp_path, pair(1, "x", 5, 7), **config).updates
