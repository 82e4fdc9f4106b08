"""Merges over several devices and several processes equal those of one."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sharded
import two_processes

HERE = Path(__file__).parent / "rig"


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


@pytest.fixture(scope="module")
def by_two_processes():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [started(HERE / "two_processes.py", number, port) for number in range(2)]
    try:
        return [ended(process) for process in both]
    finally:
        for process in both:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("case", ["own batches", "spread"])
def test_two_processes_merge_as_one_does(case, by_two_processes):
    expected = two_processes.merged(*two_processes.inputs()).variables
    for found in by_two_processes:
        for path, leaf in expected.items():
            np.testing.assert_allclose(found[case][path], leaf, atol=1e-4)
    assert by_two_processes[0] == by_two_processes[1]
