import re
from pathlib import Path

import pytest
import yaml

from jmudsc.experiments.class_split_config import read_experiment
from jmudsc.experiments.finetune_config import FineTuneExperiment, parse_finetunes
from jmudsc.experiments.finetune_ways import LEFT_OUT, WAYS
from jmudsc.experiments.models import ResNet
from jmudsc.experiments.training import TrainConfig
from jmudsc.finetunes.methods import FINETUNE_METHODS

CONFIGS = Path(__file__).parents[2] / "configs"
WHOLE = """
finetunes: [digits turned, vehicles turned]
network: {name: resnet, width: 1, outputs: 8, blocks: [1, 2]}
base: {epochs: 2, batch_size: 10, learning_rate: 1}
training: {epochs: 3, batch_size: 10, learning_rate: 1, optimizer: adam}
digits: digits
photos: digits
side: 8
base_images: 100
glimpse: 0
task_images: 50
test_images: 40
search: 30
samples: [8]
lambdas: [1]
ways: [linear, lot]
"""


def test_every_key_is_read():
    assert parse_finetunes(yaml.safe_load(WHOLE)) == FineTuneExperiment(
        finetunes=("digits turned", "vehicles turned"),
        network=ResNet(1, 8, (1, 2)),
        base=TrainConfig(epochs=2, batch_size=10, learning_rate=1.0),
        training=TrainConfig(3, 10, 1.0, optimizer="adam"),
        digits="digits",
        photos="digits",
        side=8,
        base_images=100,
        glimpse=0.0,
        task_images=50,
        test_images=40,
        search=30,
        samples=(8,),
        lambdas=(1.0,),
        ways=("linear", "lot"),
    )


def test_all_that_is_wrong_is_said_at_once():
    content = yaml.safe_load(WHOLE) | {
        "finetunes": ["digits turned"],
        "glimpse": 2,
        "samples": [8, 8],
        "ways": ["lots"],
        "methods": ["lot"],
    }
    with pytest.raises(ValueError, match="correct 5 mistakes") as error:
        parse_finetunes(content)
    for line in (
        "finetunes: expected two tasks or more, each once, got ['digits turned'].",
        "glimpse: expected a number in [0, 1], got 2.",
        "samples: expected a list of numbers, each once, got [8, 8].",
        "methods: there is no such key",
    ):
        assert line in str(error.value), str(error.value)
    assert re.search("ways: expected a list of some of linear, .*got", str(error.value))


SHIPPED = sorted(CONFIGS.glob("finetunes-*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_can_be_read_and_names_its_command(path):
    experiment = read_experiment(path)
    assert isinstance(experiment, FineTuneExperiment)
    assert len(experiment.finetunes) >= 6
    assert f"jmudsc experiment configs/{path.name} " in path.read_text()


def test_every_method_has_a_way_but_those_for_other_cases():
    assert {way.method for way in WAYS.values()} | set(LEFT_OUT) == set(
        FINETUNE_METHODS
    )
    assert set(LEFT_OUT) == {"slerp", "nuslerp", "window"}
