from jmudsc.experiments.accuracy import Scores
from jmudsc.experiments.class_split_config import Experiment
from jmudsc.experiments.class_split_report import (
    describe,
    Entry,
    read_entries,
    write_entries,
)
from jmudsc.experiments.models import MLP
from jmudsc.experiments.training import TrainConfig


def test_entries_come_back_from_disk(tmp_path):
    entries = {
        "a": Entry(Scores(0.1, (0.2, 0.3)), 1.5, 0.7),
        "b": Entry(Scores(1.0, ()), 0.0),
    }
    write_entries(tmp_path / "some" / "scores.json", entries)
    assert read_entries(tmp_path / "some" / "scores.json") == entries


def test_no_entries_are_read_where_there_is_no_file(tmp_path):
    assert read_entries(tmp_path / "scores.json") == {}


def test_the_table_has_means_deviations_and_every_alpha():
    experiment = Experiment("digits", MLP((4,), 2), TrainConfig(1, 10, 0.1))
    runs = [
        {
            "ensemble": Entry(Scores(0.5, (0.6, 0.8)), 0.0),
            "mudsc-zip": Entry(Scores(joint, (0.5, 0.7)), 30.0, alpha),
        }
        for joint, alpha in ((0.2, 0.1), (0.4, 0.9))
    ]
    text = describe(experiment, "jmudsc experiment x.yaml", [3, 5], runs)
    assert "```sh\njmudsc experiment x.yaml\n```" in text
    assert "seeds 3, 5;" in text
    assert "- network: MLP(widths=(4,), outputs=2)\n" in text
    assert "1 minutes in all" in text
    row = next(x for x in text.splitlines() if x.startswith("| mudsc-zip"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["mudsc-zip", "0.300 ± 0.141"]
    assert cells[4:] == ["0.600 ± 0.000", "0.1, 0.9", "30"]
