"""Whatever moment a save is killed at, its path is absent or complete."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import checkpoint_writers as writers
import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc.checkpoints import atomic
from jmudsc.checkpoints.atomic import building
from jmudsc.checkpoints.load import load
from jmudsc.merging.save_result import load_provenance, save

TESTS = str(Path(writers.__file__).parent)
KILLED = -signal.SIGKILL

# Saves ones over zeros, and dies when Python is about to do what the last three
# arguments say: an event, part of what it is about, and the how-manieth of them.
CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import checkpoint_writers as writers, numpy as np
from jmudsc.merging.save_result import save

left = int(sys.argv[5])

def die(event, args):
    global left
    if event == sys.argv[3] and sys.argv[4] in str(args):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

result = writers.result_of({"w": np.ones((256, 256), np.float32)})
sys.addaudithook(die)
save(sys.argv[2], result, overwrite=True)
print(int(sys.argv[5]) - left)
"""

LOOP = """
import sys
sys.path.insert(0, sys.argv[1])
import checkpoint_writers as writers, numpy as np
from jmudsc.merging.save_result import save

print("ready", flush=True)
for i in range(10000):
    ws = {f"w{j}": np.full((512, 512), i, np.float32) for j in range(8)}
    save(sys.argv[2], writers.result_of(ws), overwrite=True)
"""


def save_in_a_child(path, event, about, number):
    moment = [event, about, str(number)]
    command = [sys.executable, "-c", CHILD, TESTS, str(path), *moment]
    return subprocess.run(command, capture_output=True, text=True)


def save_and_die(path, event, about, number=1):
    child = save_in_a_child(path, event, about, number)
    assert child.returncode == KILLED, child.stderr


def names(directory):
    return sorted(x.name for x in directory.iterdir())


@pytest.mark.parametrize(
    ("event", "about"),
    [
        ("os.mkdir", "orbax-checkpoint-tmp"),
        pytest.param("os.rename", "orbax-checkpoint-tmp", marks=pytest.mark.slow),
        ("open", "assignment.npz"),
        pytest.param("open", "provenance.json", marks=pytest.mark.slow),
        ("os.rename", "/merged'"),
    ],
)
def test_a_save_killed_before_its_end_leaves_nothing(event, about, tmp_path):
    path = tmp_path / "merged"
    save_and_die(path, event, about)
    assert not path.exists()
    assert len(names(tmp_path)) == (0 if event == "os.mkdir" else 1)
    save(path, writers.result_of({"w": jnp.zeros(3)}))
    np.testing.assert_array_equal(load(path, "w"), np.zeros(3))
    assert names(tmp_path) == ["merged"]


def test_a_save_killed_after_its_end_is_complete(tmp_path):
    path, listing = tmp_path / "merged", ("os.listdir", f"'{tmp_path}'")
    child = save_in_a_child(tmp_path / "other", *listing, 10**9)
    save_and_die(path, *listing, int(child.stdout.split()[-1]))
    np.testing.assert_array_equal(load(path, "w"), np.ones((256, 256)))
    assert list(load_provenance(path)["assignment"]) == ["P_0"]


@pytest.mark.parametrize(
    ("event", "about", "expected"),
    [("ctypes.dlsym", "renameat2", 0.0), ("shutil.rmtree", "jmudsc-tmp", 1.0)],
)
def test_an_overwrite_killed_on_the_way_keeps_the_old_or_the_new(
    event, about, expected, tmp_path
):
    path = save(tmp_path / "merged", writers.result_of({"w": jnp.zeros((256, 256))}))
    save_and_die(path, event, about)
    np.testing.assert_array_equal(load(path, "w"), np.full((256, 256), expected))
    save(path, writers.result_of({"w": jnp.full(3, 2.0)}), overwrite=True)
    np.testing.assert_array_equal(load(path, "w"), np.full(3, 2.0))
    assert names(tmp_path) == ["merged"]


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_a_file_killed_before_its_end_leaves_nothing(ending, tmp_path):
    path = tmp_path / f"merged.{ending}"
    save_and_die(path, "ctypes.dlsym", "renameat2")
    assert not path.exists()
    save(path, writers.result_of({"w": jnp.zeros(3)}))
    np.testing.assert_array_equal(load(path, "w"), np.zeros(3))
    assert names(tmp_path) == [path.name, f"{path.name}.jmudsc"]


@pytest.mark.parametrize(
    ("event", "about", "number", "expected"),
    [
        ("open", "provenance.json", 2, 0.0),
        ("ctypes.dlsym", "renameat2", 1, 0.0),
        ("ctypes.dlsym", "renameat2", 2, 1.0),
        ("os.remove", "jmudsc-tmp", 1, 1.0),
    ],
)
def test_an_overwritten_file_is_the_old_or_the_new_and_can_be_overwritten(
    event, about, number, expected, tmp_path
):
    layers = [jnp.zeros((256, 256)), (), None]
    old = writers.result_of({"w": layers}, recipe={"alpha": 0.0})
    path = save(tmp_path / "merged.npz", old)
    for _ in range(2):  # the second time it finds what the first has left
        save_and_die(path, event, about, number)
        found = load(path)
        leaf = found["w"][0] if expected == 0 else found["w"]
        np.testing.assert_array_equal(leaf, np.full((256, 256), expected))
        recipe = load_provenance(path)["recipe"]
        assert recipe == ({"alpha": 0.0} if expected == 0 else {})
    save(path, writers.result_of({"w": jnp.full(3, 2.0)}), overwrite=True)
    np.testing.assert_array_equal(load(path, "w"), np.full(3, 2.0))
    assert names(tmp_path) == [path.name, f"{path.name}.jmudsc"]


def build_file_late(target):
    with building(target) as place:
        place.write_text("ours")
        target.write_text("theirs")


@pytest.mark.parametrize("system", ["renames without replacing", "only renames"])
def test_a_file_made_meanwhile_is_kept(system, tmp_path, monkeypatch):
    if system == "only renames":
        monkeypatch.setattr(atomic, "_renamed", lambda source, target, how: False)
    with pytest.raises(
        FileExistsError, match="got what another process made meanwhile"
    ):
        build_file_late(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "theirs"
    assert names(tmp_path) == ["out"]


def overwrite_with(target, name):
    with building(target, overwrite=True) as place:
        place.mkdir()
        (place / name).touch()


def test_where_directories_cannot_be_exchanged_two_renames_do(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda source, target: False)
    target = tmp_path / "out"
    overwrite_with(target, "first")
    overwrite_with(target, "second")
    assert names(target) == ["second"]
    assert names(tmp_path) == ["out"]


@pytest.mark.slow
def test_a_save_killed_at_any_time_is_absent_or_complete(tmp_path):
    path = tmp_path / "merged"
    command = [sys.executable, "-c", LOOP, TESTS, str(path)]
    for seed in range(2):
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.3 + random.Random(seed).random() * 1.5)
        child.kill()
        child.communicate()
        if path.exists():
            values = {float(leaf[0, 0]) for leaf in load(path).values()}
            assert len(values) == 1
    save(path, writers.result_of({"w": jnp.ones(3)}), overwrite=True)
    assert names(tmp_path) == ["merged"]


def fail_in(target):
    with building(target, overwrite=True) as place:
        place.mkdir()
        raise RuntimeError("disk")


def test_a_failed_build_leaves_what_was_there(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError, match="disk"):
        fail_in(target)
    assert names(tmp_path) == ["out"]
    assert names(target) == ["old"]


def test_a_live_process_keeps_its_unfinished_build(tmp_path):
    (tmp_path / ".out.jmudsc-tmp-1-abc").mkdir()
    (tmp_path / ".out.jmudsc-tmp-nonsense").mkdir()
    (tmp_path / ".out2.jmudsc-tmp-nonsense").mkdir()
    with building(tmp_path / "out") as place:
        place.mkdir()
    kept = [".out.jmudsc-tmp-1-abc", ".out2.jmudsc-tmp-nonsense", "out"]
    assert names(tmp_path) == kept


def build_late(target):
    with building(target) as place:
        place.mkdir()
        target.mkdir()
        (target / "theirs").touch()


def test_a_target_made_meanwhile_is_kept(tmp_path):
    target = tmp_path / "out"
    expected = (
        f"{target}: expected a free path, got what another process made meanwhile. "
        "Choose another."
    )
    with pytest.raises(FileExistsError, match=f"^{re.escape(expected)}$"):
        build_late(target)
    assert names(tmp_path) == ["out"]
    assert names(target) == ["theirs"]
