import re
from pathlib import Path

import pytest
import yaml

from jmudsc.experiments.class_split_config import (
    Experiment,
    parse_experiment,
    read_experiment,
)
from jmudsc.experiments.models import MLP, ViT
from jmudsc.experiments.training import TrainConfig
from jmudsc.matching.methods import METHODS

CONFIGS = Path(__file__).parents[2] / "configs"
WHOLE = """
dataset: mnist
tasks: [[0, 1], [2, 3, 4]]
train_split: train[:100]
network: {name: mlp, widths: [16, 12], outputs: 8}
training: {epochs: 2, batch_size: 10, learning_rate: 1}
methods: [average, mudsc-zip]
alphas: [0, 0.5]
repairs: [none]
calibration: 50
search: null
"""


def test_every_key_is_read():
    assert parse_experiment(yaml.safe_load(WHOLE)) == Experiment(
        dataset="mnist",
        network=MLP((16, 12), 8),
        training=TrainConfig(epochs=2, batch_size=10, learning_rate=1.0),
        tasks=((0, 1), (2, 3, 4)),
        train_split="train[:100]",
        methods=("average", "mudsc-zip"),
        alphas=(0.0, 0.5),
        repairs=("none",),
        calibration=50,
        search=None,
    )


def test_what_is_not_said_is_the_whole_comparison():
    content = yaml.safe_load(WHOLE)
    few = {key: content[key] for key in ("dataset", "network", "training")}
    experiment = parse_experiment(few)
    assert experiment.methods == METHODS
    assert experiment.alphas == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
    assert experiment.tasks == 2
    vit = {"name": "vit", "outputs": 8, "patch": 2, "width": 8, "depth": 1, "heads": 2}
    assert parse_experiment({**few, "network": vit}).network == ViT(8, 2, 8, 1, 2)


def test_all_that_is_wrong_is_said_at_once():
    content = """
        dataset: 3
        task: 2
        tasks: [[0, 1], [1, 2]]
        network: {name: mlp, width: 8, outputs: 1.5}
        training: {epochs: many, batch_size: 10, learning_rate: 0.1}
        methods: [average, mudsc]
        alphas: [0.5, 2]
        search: 0
    """
    message = (
        "experiment: correct 8 mistakes:\n"
        "  dataset: expected a name, got 3.\n"
        '  task: there is no such key; did you mean "tasks"?\n'
        "  tasks: expected every class once, got [[0, 1], [1, 2]].\n"
        '  network: width: there is no such key; did you mean "widths"? outputs: '
        "expected int, got 1.5. widths: this key is missing.\n"
        '  training: epochs: expected int, got "many".\n'
        f"  methods: expected a list of some of {', '.join(METHODS)}, got "
        "['average', 'mudsc'].\n"
        "  alphas: expected a list of numbers in [0, 1], got [0.5, 2].\n"
        "  search: expected a number of images, got 0."
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        parse_experiment(yaml.safe_load(content))


def test_missing_keys_and_unknown_networks_are_said():
    message = (
        "experiment: correct 4 mistakes:\n"
        "  tasks: expected a number of tasks, or a list of classes for each, two or "
        "more, got 1.\n"
        "  network: expected one of mlp, vgg, resnet, resnet20, bottleneck-resnet, "
        'vit, got "resnet21"; did you mean "resnet20"?\n'
        "  training: expected a mapping of keys to values, got 3.\n"
        "  dataset: this key is missing."
    )
    content = {"tasks": 1, "network": {"name": "resnet21"}, "training": 3}
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        parse_experiment(content)


def test_a_config_that_is_not_there_is_an_error(tmp_path):
    path = tmp_path / "none.yaml"
    message = (
        f"{path}: expected the config of an experiment, got no such file. Check the "
        "path."
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        read_experiment(path)


def test_a_config_that_is_no_mapping_is_an_error(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    message = f"{path}: expected a mapping of keys to values, got a list."
    with pytest.raises(ValueError, match=re.escape(message)):
        read_experiment(path)
    path.write_text("a: [")
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected YAML, got")):
        read_experiment(path)


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("*.yaml")))
def test_the_configs_that_come_along_can_be_read(name):
    text = (CONFIGS / name).read_text()
    if "apply_fn" not in text:  # those are recipes
        read_experiment(CONFIGS / name)
        assert f"jmudsc experiment configs/{name}" in text
