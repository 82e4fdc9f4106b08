"""The digest of a checkpoint is one that other programs can compute."""

import hashlib
import subprocess

import numpy as np
import pytest

from jmudsc.checkpoints.contents import contents_digest
from jmudsc.checkpoints.provenance import Record
from jmudsc.checkpoints.save import save_variables, save_with_record

TREE = {"a": np.arange(3.0, dtype=np.float32), "b": {"c": np.ones((2, 2), np.int8)}}


@pytest.mark.parametrize("name", ["model.npz", "model.safetensors", "model.msgpack"])
def test_that_of_a_file_is_its_own(name, tmp_path):
    save_variables(tmp_path / name, TREE)
    content = (tmp_path / name).read_bytes()
    assert contents_digest(tmp_path / name) == hashlib.sha256(content).hexdigest()


def test_that_of_a_directory_is_of_the_lines_of_sha256sum(tmp_path):
    save_variables(tmp_path / "model", TREE)
    command = "find . -type f | sed s,^./,, | LC_ALL=C sort | xargs sha256sum"
    lines = subprocess.run(
        command, shell=True, cwd=tmp_path / "model", capture_output=True, check=True
    ).stdout
    digest = contents_digest(tmp_path / "model")
    assert digest == hashlib.sha256(lines).hexdigest()


def test_cards_and_records_make_no_difference(tmp_path):
    save_with_record(tmp_path / "model", TREE, Record())
    digest = contents_digest(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("# Mine")
    (tmp_path / "model" / "jmudsc" / "report.md").write_text("# Mine")
    assert contents_digest(tmp_path / "model") == digest
    (tmp_path / "model" / "_METADATA").write_text("{}")
    assert contents_digest(tmp_path / "model") != digest


def test_it_is_of_what_is_in_it_and_not_of_its_place(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_variables(tmp_path / name, TREE)
    save_variables(tmp_path / "c.npz", {**TREE, "a": TREE["a"] + 1})
    a, b, c = (contents_digest(tmp_path / f"{x}.npz") for x in "abc")
    assert a == b != c


def test_nothing_is_read_from_a_url():
    assert contents_digest("s3://bucket/model.npz") is None
