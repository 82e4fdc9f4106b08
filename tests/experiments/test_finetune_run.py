"""Two fine-tunes on digits of a tiny network; seconds, but for what is compiled."""

import json
import re

import pytest

from jmudsc.experiments import finetune_cases, finetune_run
from jmudsc.experiments.class_split import run_experiment
from jmudsc.experiments.finetune_accuracies import BASE, read_tuned, TOGETHER, TUNED

pytestmark = pytest.mark.slow

TINY = """
finetunes: [digits negative, digits turned]
network: {name: resnet, width: 1, outputs: 8, blocks: [1]}
base: &training
  epochs: 2
  batch_size: 50
  learning_rate: 0.01
  weight_decay: 0.01
  optimizer: adam
training: *training
digits: digits
photos: digits
side: 8
base_images: 600
task_images: 500
test_images: 200
search: 50
samples: [16]
lambdas: [0.3, 0.5]
ways: [linear, task_arithmetic, lot, fisher, linear + refit]
"""
WITHOUT = [
    "linear",
    "linear (averaged)",
    "task_arithmetic",
    "task_arithmetic (averaged)",
]
WITH = [
    "linear",
    "linear (reset by task)",
    "task_arithmetic",
    "task_arithmetic (reset by task)",
    "lot",
    "fisher",
    "linear + refit",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """Stopped in the training of the second fine-tune, and then run to the end."""
    out = tmp_path_factory.mktemp("runs") / "tiny"

    def stopping(stage, number, total):
        if "turned training" in stage and number == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_experiment(config, (0,), out, progress=stopping)
    told = []
    _, text = run_experiment(config, (0,), out, progress=lambda *x: told.append(x))
    return out, text, told


def test_a_stopped_experiment_goes_on_where_it_was(done):
    trained = [(s.split(" (")[0], n) for s, n, _ in done[2] if "training" in s]
    assert trained == [
        ("seed 0: digits turned training", 1),
        ("seed 0: digits turned training", 2),
        ("seed 0: all tasks at once training", 1),
        ("seed 0: all tasks at once training", 2),
    ]


def test_the_report_has_every_way_with_and_without_images(done):
    out, text, _ = done
    assert (out / "report.md").read_text() == text
    start, *rest = re.split(
        r"^Without images:|^With 16 images.*:|^By task:", text, flags=re.M
    )
    heads = lambda part: re.findall(r"^\| ([^|:]*?) *\|", part, flags=re.M)[1:]
    assert heads(start) == [BASE, TUNED, TOGETHER]
    assert sorted(heads(rest[0])) == WITHOUT
    assert sorted(heads(rest[1])) == sorted(WITH)
    assert heads(rest[2])[:3] == [BASE, TUNED, TOGETHER]


def test_accuracies_are_ranked_as_they_must_be(done):
    found = read_tuned(done[0] / "seed-0" / "accuracies.json")
    for task in range(2):
        assert found[TUNED].accuracies[task] > found[BASE].accuracies[task]
    assert found["task_arithmetic"].scale in (0.3, 0.5)
    assert found["linear"].scale is None
    assert found["lot, 16 images"].samples == 16
    # the mean is among what is tried, and chosen if it is the best
    both = [found[name].mean for name in ("linear", "task_arithmetic")]
    assert all(0.05 < each < found[TUNED].mean for each in both)


def test_one_merge_that_is_missing_is_made_alone_with_the_same_numbers(
    done, config, monkeypatch
):
    out = done[0]
    file = out / "seed-0" / "accuracies.json"
    entries = json.loads(file.read_text())
    before = entries.pop("lot, 16 images")
    file.write_text(json.dumps(entries))
    run_experiment(config, (0,), out)
    again = json.loads(file.read_text())["lot, 16 images"]
    assert {**before, "seconds": 0} == {**again, "seconds": 0}
    monkeypatch.setattr(finetune_cases, "merge_finetunes", None)
    monkeypatch.setattr(finetune_run, "train", None)
    run_experiment(config, (0,), out)
