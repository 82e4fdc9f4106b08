"""A file that is filled by threads, and taken up again after its process was killed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import jmudsc
from jmudsc.checkpoints.filling import (
    begin,
    fill,
    fill_share,
    filled,
    Filling,
    table_of,
)
from jmudsc.checkpoints.formats import FORMATS
from jmudsc.checkpoints.provenance import leaf_digest, Record
from jmudsc.checkpoints.save import save_with_record
from jmudsc.lazy import LazyArray

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.float16(0.5).reshape(()),
    "c/d": np.arange(-4, 4, dtype=np.int8),
    "e": np.arange(9.0).reshape(3, 3).T,
}


def lazy(arrays=ARRAYS, read=None, cost=0):
    def of(name, array):
        def fetch(names):
            if read is not None:
                read(name)
            return {name: array}

        return LazyArray(name, array.shape, array.dtype, fetch, cost)

    return {name: of(name, array) for name, array in arrays.items()}


def filling(folder, identity="one", memory=10**9, threads=2, **more):
    return Filling(folder / "journal", identity, memory, threads, **more)


def filled_arrays(folder, read=None, **options):
    leaves = lazy(read=read)
    table = table_of(leaves)
    file, digests = fill(filling(folder, **options), leaves, table)
    assert digests == {name: leaf_digest(x) for name, x in ARRAYS.items()}
    found = {name: x.read() for name, x in filled(file, leaves, table).items()}
    assert all(np.array_equal(found[name], x) for name, x in ARRAYS.items())
    assert all(found[name].dtype == x.dtype for name, x in ARRAYS.items())


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("memory", [0, 50, 10**9])
def test_all_arrays_are_in_their_places_however_it_is_done(tmp_path, threads, memory):
    told = []
    progress = lambda *what: told.append(what)
    filled_arrays(tmp_path, threads=threads, memory=memory, progress=progress)
    assert told[-1] == ("merging and writing", 4, 4)


def test_processes_compute_a_share_each_and_the_first_takes_up_all(tmp_path):
    computed = [[], [], []]

    def shared(number):
        leaves = lazy(read=computed[number].append)
        return filling(tmp_path), leaves, table_of(leaves)

    begin(*shared(2))
    for number in range(2):
        fill_share(*shared(number), number, 2)
    assert all(computed[:2])
    assert sorted(computed[0] + computed[1]) == sorted(ARRAYS)
    filled_arrays(tmp_path, computed[2].append)
    assert computed[2] == []


def test_shares_of_processes_that_died_are_taken_up_and_dealt_out_anew(tmp_path):
    first, rest = [], []
    leaves = lazy(read=first.append)
    begin(filling(tmp_path), leaves, table_of(leaves))
    fill_share(filling(tmp_path), leaves, table_of(leaves), 1, 3)  # the others died
    assert 0 < len(first) < len(ARRAYS)
    leaves = lazy(read=rest.append)
    assert begin(filling(tmp_path), leaves, table_of(leaves)).keys() == set(first)
    for number in range(2):
        fill_share(filling(tmp_path), leaves, table_of(leaves), number, 2)
    assert sorted(first + rest) == sorted(ARRAYS)
    filled_arrays(tmp_path, first.append)


def test_no_more_is_computed_at_once_than_there_is_memory_for(tmp_path):
    now, most, lock = [], [], threading.Lock()
    arrays = {str(n): np.full(10, n, np.int8) for n in range(12)}

    def read(name):
        with lock:
            now.append(name)
            most.append(len(now))
        threading.Event().wait(0.01)
        with lock:
            now.remove(name)

    leaves = lazy(arrays, read, cost=20)
    fill(filling(tmp_path, memory=65, threads=8), leaves, table_of(leaves))
    assert max(most) == 2


def test_what_is_there_is_not_computed_again(tmp_path):
    filled_arrays(tmp_path)
    filled_arrays(tmp_path, read=pytest.fail)
    log, file = (tmp_path / "journal" / name for name in ("done", "leaves"))
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:3]) + '\n["c/d", "no end')
    redone = []
    filled_arrays(tmp_path, read=redone.append)
    done = {json.loads(line)[0] for line in lines[1:3]}
    assert set(redone) == ARRAYS.keys() - done
    data = bytearray(file.read_bytes())
    data[3] ^= 1  # of "a"
    file.write_bytes(data)
    redone.clear()
    filled_arrays(tmp_path, read=redone.append)
    assert redone == ["a"]


@pytest.mark.parametrize("change", ["identity", "names", "size", "no log"])
def test_what_is_of_something_else_is_not_used(tmp_path, change):
    filled_arrays(tmp_path)
    redone, options = [], {}
    if change == "identity":
        options["identity"] = "another"
    elif change == "size":
        with (tmp_path / "journal" / "leaves").open("ab") as opened:
            opened.write(b"more")
    elif change == "no log":
        (tmp_path / "journal" / "done").unlink()
    else:
        leaves = lazy({"x": np.zeros(3)})
        fill(filling(tmp_path), leaves, table_of(leaves))
    filled_arrays(tmp_path, read=redone.append, **options)
    assert set(redone) == ARRAYS.keys()


def test_an_error_ends_it_and_what_was_done_is_kept(tmp_path):
    def read(name):
        if name == "c/d":
            raise ValueError("c/d: is wrong")

    with pytest.raises(ValueError, match=r"^c/d: is wrong$"):
        filled_arrays(tmp_path, read=read, threads=1)
    redone = []
    filled_arrays(tmp_path, read=redone.append)
    assert set(redone) == {"c/d", "e"}


def test_a_file_that_ends_early_is_said_so(tmp_path):
    leaves = lazy()
    table = table_of(leaves)
    file, _ = fill(filling(tmp_path), leaves, table)
    os.truncate(file, 30)
    array = filled(file, leaves, table)["e"]
    expected = f"{file}: expected 72 bytes at {table.places['e']}"
    with pytest.raises(EOFError, match=f"^{re.escape(expected)}$"):
        array.read()


@pytest.mark.parametrize("kind", FORMATS, ids=lambda row: row.name)
def test_every_format_is_written_to_the_same_bytes_or_leaves(tmp_path, kind):
    ending = kind.endings[0] if kind.endings else ""
    record = Record({"recipe": {}, "extra": {}, "history": []}, {}, {})
    one, other = (tmp_path / f"{name}{ending}" for name in ("one", "other"))
    save_with_record(one, lazy(), record)
    save_with_record(other, lazy(), record, filling=filling(tmp_path))
    if kind.endings and kind.table:
        assert one.read_bytes() == other.read_bytes()
    ours, theirs = (jmudsc.load(x, separator="") for x in (one, other))
    flat = lambda tree: {name: np.asarray(x) for name, x in tree.items()}
    assert flat(ours).keys() == flat(theirs).keys()
    for name, leaf in flat(ours).items():
        assert leaf.tobytes() == flat(theirs)[name].tobytes()


KILLED = """
import sys, time, pathlib
import numpy as np
sys.path[:0] = {path!r}
from jmudsc.checkpoints.filling import fill, Filling, table_of
from jmudsc.lazy import LazyArray

def of(name):
    def fetch(names):
        if name == "7":
            print("here", flush=True)
            time.sleep(60)
        return {{name: np.full(100, int(name))}}
    return LazyArray(name, (100,), np.dtype(int), fetch)

leaves = {{str(n): of(str(n)) for n in range(12)}}
folder = pathlib.Path({folder!r})
fill(Filling(folder / "journal", "one", 10**9, 1), leaves, table_of(leaves))
"""


def test_a_process_that_was_killed_leaves_what_it_had_done(tmp_path):
    text = KILLED.format(path=sys.path, folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    redone = []
    arrays = {str(n): np.full(100, n) for n in range(12)}
    leaves = lazy(arrays, redone.append)
    table = table_of(leaves)
    file, _ = fill(filling(tmp_path), leaves, table)
    assert sorted(redone, key=int) == [str(n) for n in range(7, 12)]
    for name, leaf in filled(file, leaves, table).items():
        assert np.array_equal(leaf.read(), arrays[name])
