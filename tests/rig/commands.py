"""The command line, called in process."""

import sys

import pytest

from jmudsc import cli


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["jmudsc", *map(str, arguments)])
    cli.main()


def fails(monkeypatch, *arguments):
    with pytest.raises(SystemExit) as failure:
        run(monkeypatch, *arguments)
    return str(failure.value)
