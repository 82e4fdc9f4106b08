"""Two tasks on digits with a tiny encoder; seconds, but for what is compiled."""

import json
import re

import pytest

from jmudsc.experiments import class_split, tasks_run
from jmudsc.experiments.class_split import run_experiment
from jmudsc.experiments.tasks_report import read_losses

pytestmark = pytest.mark.slow

TINY = """
dataset: digits
tasks: [classification, denoising]
network: {name: vgg-encoder, channels: [[6]]}
training: {epochs: 4, batch_size: 100, learning_rate: 0.1}
methods: [mudsc-zip]
alphas: [0.2, 0.8]
repairs: [none, refit]
code: 4
calibration: 256
search: 256
"""
PAIR = "classification + denoising"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """Stopped in the training of the second task, and then run to the end."""
    out = tmp_path_factory.mktemp("runs") / "tiny"

    def stopping(stage, number, total):
        if "denoising training" in stage and number == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_experiment(config, (0,), out, progress=stopping)
    told = []
    _, text = run_experiment(config, (0,), out, progress=lambda *x: told.append(x))
    return out, text, told


def test_a_stopped_experiment_goes_on_where_it_was(done):
    _, _, told = done
    trained = [(s.split(" (")[0], n) for s, n, _ in told if "training" in s]
    assert trained == [
        ("seed 0: denoising training", 3),
        ("seed 0: denoising training", 4),
    ]


def test_the_report_has_every_method_pair_and_parent(done):
    out, text, _ = done
    assert (out / "report.md").read_text() == text
    heads = re.findall(r"^\| ([^|:]*?) *\|", text, flags=re.MULTILINE)
    methods = ["mudsc-zip", "mudsc-zip + refit"]
    parents = ["classification", "denoising"]
    assert heads == ["network", *methods, "pair", PAIR, "task", *parents]


def test_losses_are_ranked_as_they_must_be(done):
    found = read_losses(done[0] / "seed-0" / "losses.json")
    for task in ("classification", "denoising"):
        parent, constant = (
            found[name].losses[task] for name in (f"parent {task}", "constant")
        )
        fitted = found[f"{PAIR}: mudsc-zip + refit"].losses[task]
        plain = found[f"{PAIR}: mudsc-zip"].losses[task]
        assert parent < fitted < min(plain, constant)
    assert found[f"{PAIR}: mudsc-zip"].alpha in (0.2, 0.8)


def test_one_merge_that_is_missing_is_made_alone_with_the_same_bits(
    done, config, monkeypatch
):
    out = done[0]
    file = out / "seed-0" / "losses.json"
    entries = json.loads(file.read_text())
    name = f"{PAIR}: mudsc-zip + refit"
    before = entries.pop(name)
    file.write_text(json.dumps(entries))
    run_experiment(config, (0,), out)
    again = json.loads(file.read_text())[name]
    assert {**before, "seconds": 0} == {**again, "seconds": 0}
    monkeypatch.setattr(tasks_run, "merge", None)
    monkeypatch.setattr(tasks_run, "train", None)
    run_experiment(config, (0,), out)


def test_results_of_another_experiment_are_not_mixed_in(done, tmp_path):
    other = tmp_path / "tiny.yaml"
    other.write_text(TINY.replace("epochs: 4", "epochs: 5"))
    message = f"{done[0]}: expected a new directory or results of this experiment"
    with pytest.raises(ValueError, match=re.escape(message)):
        run_experiment(other, (0,), done[0])


def test_classes_are_scored_by_the_other_experiment(config):
    assert class_split.read_experiment(config).tasks == ("classification", "denoising")
