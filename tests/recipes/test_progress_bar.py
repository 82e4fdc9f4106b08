"""Progress is told on a terminal, with share and time left, and nowhere else."""

import io
import sys

import pytest

from jmudsc.recipes.progress_bar import drawn, share_done


@pytest.mark.parametrize(
    ("done", "total", "seconds", "said"),
    [
        (3, None, 9.0, ""),
        (0, 1, 9.0, ""),
        (0, 10, 9.0, "0%"),
        (10, 10, 9.0, "100%"),
        (1, 10, 1.0, "10%, 0:09 left"),
        (1, 3, 3600.0, "33%, 2:00:00 left"),
    ],
)
def test_what_is_left_is_told_at_the_pace_so_far(done, total, seconds, said):
    assert share_done(done, total, seconds) == said


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with drawn() as progress:
        for done in range(4):
            progress("matching (a label)", done, 4)
        progress("writing", 0, 1)
    return stream.getvalue()


def test_a_terminal_shows_stage_share_and_time(monkeypatch):
    said = told(Terminal(), monkeypatch)
    assert "writing" in said
    assert "\x1b[" in said


def test_nothing_is_written_where_there_is_no_terminal(monkeypatch):
    assert told(io.StringIO(), monkeypatch) == ""


def test_the_share_is_drawn(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with drawn() as progress:
        progress("collecting", 0, 4)
        progress("collecting", 1, 4)
    said = stream.getvalue()
    assert "collecting" in said
    assert "25%, 0:0" in said
