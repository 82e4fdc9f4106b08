"""Merges over several devices and several processes equal those of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sharded

HERE = Path(__file__).parent


def started(*arguments):
    command = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def ended(process):
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def on_eight_devices():
    return ended(started(HERE / "sharded.py"))


@pytest.mark.parametrize("case", list(sharded.CASES))
def test_a_merge_over_eight_devices_equals_that_on_one(case, on_eight_devices):
    gap, kept = on_eight_devices[case]
    assert gap < 1e-5
    assert kept
