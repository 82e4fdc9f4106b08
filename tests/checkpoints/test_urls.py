"""Checkpoints at URLs: on a server of objects that the tests start."""

import re
import sys

import checkpoint_writers as writers
import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from s3 import bucket as bucket, names

from jmudsc import load, load_provenance, load_shapes, save
from jmudsc.checkpoints import publishing, urls
from jmudsc.checkpoints.save import save_variables

KNOWN = "such as gs:// or s3://"
ENDINGS = ["", ".safetensors", ".npz", ".msgpack"]


@pytest.fixture
def result():
    return writers.result_of({"a": {"w": jnp.arange(6.0).reshape(2, 3)}, "b": 2.5})


def is_same(found, expected):
    return jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def sentence(text):
    return f"^{re.escape(text)}$"


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_saved_at_a_url_is_loaded_from_there(ending, bucket, result):
    url = f"{bucket}/saved/merged{ending}"
    assert str(save(url, result, notes={"report.md": "told"})) == url
    found = load(url)
    assert is_same(found, jax.tree.map(jnp.asarray, result.variables))
    assert is_same(load(url, "a", lazy=True), result.variables["a"])
    assert load_shapes(url)["a"]["w"].shape == (2, 3)
    assert load_provenance(url)["recipe"] == result.recipe
    told = names(f"{bucket}/saved")
    assert not [x for x in told if x.startswith(".")]
    inside = f"merged{ending}.jmudsc" if ending else "merged/jmudsc"
    assert f"{inside}/report.md" in told


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_there_is_replaced_on_demand_only(ending, bucket, result):
    url = f"{bucket}/twice/merged{ending}"
    save(url, result)
    message = (
        f"{url}: expected a free path, got one that exists. Choose another or pass "
        "overwrite=True (--overwrite)."
    )
    with pytest.raises(FileExistsError, match=sentence(message)):
        save(url, result)
    other = writers.result_of({"c": jnp.ones(3)})
    save(url, other, overwrite=True)
    assert is_same(load(url), {"c": np.ones(3, np.float32)})
    assert load_provenance(url)["digests"].keys() == {"c"}


def test_foreign_objects_are_never_deleted(bucket, result):
    url = f"{bucket}/foreign/merged"
    save(url, result)
    fsspec.filesystem("s3").pipe_file(f"{url}/mine.txt", b"mine")
    message = (
        f"{url}: expected nothing but what jmudsc saved, got 1 changed or other files, "
        "which overwrite=True never removes. Move them away or choose another path:\n"
        "  merged/mine.txt"
    )
    with pytest.raises(FileExistsError, match=sentence(message)):
        save(url, result, overwrite=True)
    assert "mine.txt" in names(url)
    assert is_same(load(url)["a"], result.variables["a"])


class Killed(BaseException):
    """What ends a process."""


class Watched:
    """A file system that remembers what it was asked, and may die of it."""

    def __init__(self, system, last=None):
        self.system, self.last, self.asked = system, last, []

    def __getattr__(self, name):
        real = getattr(self.system, name)
        if name not in ("put_file", "cp_file", "rm_file", "get_file"):
            return real

        def call(*arguments):
            if len(self.asked) == self.last:
                raise Killed
            self.asked.append((name, *arguments))
            return real(*arguments)

        return call


def watched(monkeypatch, module, last=None):
    real = urls.file_system
    seen = Watched(None, last)

    def file_system(url):
        seen.system, at = real(url)
        return seen, at

    monkeypatch.setattr(module, "file_system", file_system)
    return seen


@pytest.mark.parametrize("ending", ["", ".npz"])
@pytest.mark.parametrize("part", [0, 0.2, 0.4, 0.45, 0.5, 0.6, 0.75, 0.85])
def test_a_process_that_dies_leaves_the_old_the_new_or_nothing_that_is_read(
    ending, part, bucket, result, monkeypatch
):
    url = f"{bucket}/dying-{part}/merged{ending}"
    save(url, result)
    with monkeypatch.context() as patch:
        seen = watched(patch, publishing)
        save(url, result, overwrite=True)
    other = writers.result_of({"c": jnp.ones(3)})
    with monkeypatch.context() as patch:
        watched(patch, publishing, int(part * len(seen.asked)))
        with pytest.raises(Killed):
            save(url, other, overwrite=True)
    if not ending and "_METADATA" not in names(url):
        message = f"{url}: expected a finished orbax checkpoint of arrays, got one"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            load(url)
        return
    found, digests = load(url), load_provenance(url)["digests"]
    if digests.keys() == {"c"}:
        assert is_same(found, {"c": np.ones(3, np.float32)})
    else:
        assert is_same(found["a"], result.variables["a"])


def test_what_comes_to_be_there_meanwhile_is_kept(bucket, result, monkeypatch):
    url = f"{bucket}/raced/merged.npz"
    moves = publishing._moves

    def slow(*arguments):
        fsspec.filesystem("s3").pipe_file(url, b"mine")
        return moves(*arguments)

    monkeypatch.setattr(publishing, "_moves", slow)
    message = (
        f"{url}: expected a free path, got what another process made meanwhile. "
        "Choose another."
    )
    with pytest.raises(FileExistsError, match=sentence(message)):
        save(url, result)
    assert names(f"{bucket}/raced") == ["merged.npz"]


def test_only_the_checkpoint_that_is_asked_for_is_copied(bucket, monkeypatch):
    for step in range(3):
        save_variables(f"{bucket}/run/{step}", {"w": jnp.full(2, step)})
    seen = watched(monkeypatch, urls)
    assert is_same(load(f"{bucket}/run/1"), {"w": np.full(2, 1)})
    assert seen.asked
    assert all(asked[1].startswith("bucket/run/1/") for asked in seen.asked)
    count = len(seen.asked)
    load(f"{bucket}/run/1")
    assert len(seen.asked) == count  # the copy is as new as what is there
    message = f"{bucket}/run: expected one checkpoint, got a directory of 3 checkpoints"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load(f"{bucket}/run")


def test_what_is_written_anew_is_read_anew(bucket):
    url = f"{bucket}/anew/model.npz"
    save_variables(url, {"w": jnp.ones(2)})
    assert is_same(load(url), {"w": np.ones(2)})
    fsspec.filesystem("s3").rm(f"{bucket}/anew", recursive=True)
    save_variables(url, {"w": jnp.zeros(2)})
    assert is_same(load(url), {"w": np.zeros(2)})


def test_several_files_with_an_index_are_read_together(bucket, tmp_path):
    from safetensors.numpy import save as as_bytes

    system = fsspec.filesystem("s3")
    at = f"{bucket}/sharded/model"
    for number in range(2):
        content = as_bytes({f"w{number}": np.full(2, number, np.float32)})
        system.pipe_file(f"{at}-{number}.safetensors", content)
    index = '{"weight_map": {"w0": "model-0.safetensors", "w1": "model-1.safetensors"}}'
    system.pipe_file(f"{at}.safetensors.index.json", index.encode())
    expected = {"w0": np.zeros(2), "w1": np.ones(2)}
    assert is_same(load(f"{bucket}/sharded"), expected)
    assert is_same(load(f"{at}.safetensors.index.json"), expected)


def test_nothing_at_a_url_is_told_by_the_url(bucket):
    url = f"{bucket}/nothing"
    message = f"{url}: expected a checkpoint, got nothing. Check the path."
    with pytest.raises(FileNotFoundError, match=sentence(message)):
        load(url)


def test_damage_is_told_by_the_url(bucket):
    url = f"{bucket}/damaged.npz"
    fsspec.filesystem("s3").pipe_file(url, b"PK\3\4 and no more")
    message = f"{url}: expected a whole npz file, got one that cannot be read"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load(url)


@pytest.mark.parametrize("scheme", ["http", "xyz"])
def test_a_url_of_no_file_system_is_refused(scheme):
    url = f"{scheme}://bucket/run"
    message = (
        f"{url}: expected a file system that etils.epath knows, {KNOWN}, got "
        f"{scheme}://. Copy the checkpoint here."
    )
    with pytest.raises(ValueError, match=sentence(message)):
        load(url)
    with pytest.raises(ValueError, match=sentence(message)):
        save_variables(url, {"w": jnp.ones(2)})


def test_a_url_whose_file_system_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    message = (
        "gs://bucket/run: expected a file system that is installed, got one without "
        "its package: Please install gcsfs to access Google Storage. Install that, or "
        "copy the checkpoint here."
    )
    with pytest.raises(ValueError, match=sentence(message)):
        load("gs://bucket/run")


def test_a_file_system_that_refuses_is_one_sentence(monkeypatch):
    monkeypatch.setattr(type(epath.Path("s3://x/y")), "exists", refusing)
    message = (
        "s3://bucket/run: expected a file system that answers, got an error "
        "(PermissionError: Forbidden). Check the name, the rights and the network."
    )
    with pytest.raises(ValueError, match=sentence(message)):
        load("s3://bucket/run")


def refusing(self):
    raise PermissionError("Forbidden")
