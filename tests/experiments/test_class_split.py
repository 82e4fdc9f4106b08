"""An experiment on digits that takes seconds: a tiny MLP, few epochs."""

import json
import re
import shutil
import sys

import pytest

from jmudsc import cli
from jmudsc.experiments import class_split
from jmudsc.experiments.class_split import run_experiment
from jmudsc.experiments.class_split_report import read_entries

pytestmark = pytest.mark.slow

TINY = """
dataset: digits
network: {name: mlp, widths: [24], outputs: 16}
training: {epochs: 3, batch_size: 15, learning_rate: 0.1}
methods: [average, mudsc-zip]
alphas: [0.2, 0.8]
repairs: [none, refit by task]
calibration: 300
search: 400
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """Two seeds, run once."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    _, text = run_experiment(config, (0, 1), out)
    return out, text


def rows(text):
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line[:1] == "|"]
    return {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in lines[2:]}


def joint(text, name):
    return float(rows(text)[name][0].split(" ")[0])


def test_the_report_has_every_network_with_means_and_deviations(done):
    out, text = done
    assert (out / "report.md").read_text() == text
    assert list(rows(text)) == [
        "parent A",
        "parent B",
        "all classes",
        "ensemble",
        "average",
        "average + refit by task",
        "mudsc-zip",
        "mudsc-zip + refit by task",
    ]
    for cells in rows(text).values():
        assert all(re.fullmatch(r"\d\.\d{3} ± \d\.\d{3}", cell) for cell in cells[:4])


def test_networks_are_ranked_as_they_must_be(done):
    _, text = done
    assert joint(text, "all classes") > 0.8
    assert joint(text, "parent A") < 0.55
    assert joint(text, "mudsc-zip") > joint(text, "average")


def test_alpha_is_one_of_those_to_choose_from_and_the_same_for_every_repair(done):
    _, text = done
    for alpha in rows(text)["mudsc-zip"][4].split(", "):
        assert alpha in ("0.2", "0.8")
    assert rows(text)["mudsc-zip + refit by task"][4] == rows(text)["mudsc-zip"][4]
    assert rows(text)["average"][4] == "-"


def test_a_finished_experiment_is_not_done_again(done, config, monkeypatch):
    out, text = done
    monkeypatch.setattr(class_split, "train", None)
    monkeypatch.setattr(class_split, "matcher", None)
    assert run_experiment(config, (0, 1), out)[1] == text


def test_a_stopped_experiment_goes_on_where_it_was(done, config, tmp_path):
    out = tmp_path / "tiny"

    def stopping(stage, number, total):
        if "parent B" in stage and number == 3 and not (out / "again").exists():
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_experiment(config, (0,), out, progress=stopping)
    (out / "again").touch()
    assert list(read_entries(out / "seed-0" / "scores.json")) == ["parent A"]
    told = []
    run_experiment(config, (0,), out, progress=lambda *what: told.append(what))
    epochs = [done for stage, done, _ in told if "parent B training" in stage]
    assert epochs == [3]
    assert not any("parent A training" in stage for stage, *_ in told)
    whole, again = (
        {
            name: (entry.scores, entry.alpha)
            for name, entry in read_entries(folder / "seed-0/scores.json").items()
        }
        for folder in (done[0], out)
    )
    assert whole == again


def test_one_merge_that_is_missing_is_made_alone(done, config, tmp_path):
    out, _ = done
    copy = tmp_path / "tiny"
    shutil.copytree(out, copy)
    file = copy / "seed-0" / "scores.json"
    entries = json.loads(file.read_text())
    before = entries.pop("mudsc-zip + refit by task")
    file.write_text(json.dumps(entries))
    run_experiment(config, (0, 1), copy)
    after = json.loads(file.read_text())["mudsc-zip + refit by task"]
    assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_results_of_another_experiment_are_not_mixed_in(done, tmp_path):
    out, _ = done
    other = tmp_path / "tiny.yaml"
    other.write_text(TINY.replace("epochs: 3", "epochs: 4"))
    message = (
        f"{out}: expected a new directory or results of this experiment, got those of "
        "another. Choose a directory with --out, or remove this one."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        run_experiment(other, (0,), out)


def test_the_command_prints_the_report(done, config, monkeypatch, capsys):
    out, text = done
    given = ["experiment", str(config), "--seeds", "0", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["jmudsc", *given])
    cli.main()
    assert capsys.readouterr().out == f"{text}\nWrote {out / 'report.md'}\n"
