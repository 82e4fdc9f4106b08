import re

import pytest
import yaml

from jmudsc.experiments.convnets import ResNetEncoder
from jmudsc.experiments.tasks_config import (
    has_tasks,
    parse_task_experiment,
    TaskExperiment,
)
from jmudsc.experiments.training import TrainConfig
from jmudsc.matching.methods import METHODS

FEW = """
dataset: cifar10
tasks: [edges, colorization]
network: {name: resnet-encoder, width: 2, blocks: [2, 2]}
training: {epochs: 2, batch_size: 10, learning_rate: 1}
"""


def test_what_is_not_said_is_the_paper_s_comparison():
    assert parse_task_experiment(yaml.safe_load(FEW)) == TaskExperiment(
        dataset="cifar10",
        network=ResNetEncoder(2, (2, 2)),
        training=TrainConfig(epochs=2, batch_size=10, learning_rate=1.0),
        tasks=("edges", "colorization"),
        code=8,
        methods=METHODS,
        alphas=(0.5,),
        repairs=("none", "refit"),
    )


def test_names_are_tasks_and_numbers_are_classes():
    assert has_tasks({"tasks": ["edges"]})
    for tasks in (2, [[0, 1], [2]], None, "edges"):
        assert not has_tasks({"tasks": tasks})
    assert not has_tasks(["tasks"])


def test_all_that_is_wrong_is_said_at_once():
    content = """
        tasks: [edges, rotations]
        network: {name: resnet20, width: 1}
        training: {epochs: 2, batch_size: 10, learning_rate: 0.1}
        code: 0
        repair: [none]
    """
    message = (
        "experiment: correct 5 mistakes:\n"
        "  tasks: expected a list of some of classification, autoencoding, denoising, "
        'edges, rotation, colorization, got rotations; did you mean "rotation"?\n'
        "  network: expected one of resnet-encoder, vgg-encoder, got "
        '"resnet20".\n'
        "  code: expected a number of channels, got 0.\n"
        '  repair: there is no such key; did you mean "repairs"?\n'
        "  dataset: this key is missing."
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        parse_task_experiment(yaml.safe_load(content))


@pytest.mark.parametrize("tasks", [["edges"], ["edges", "edges"]])
def test_tasks_are_two_or_more_each_once(tasks):
    message = f"tasks: expected two tasks or more, each once, got {tasks}."
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_task_experiment({**yaml.safe_load(FEW), "tasks": tasks})
