"""Npz files that others wrote, and damaged ones."""

import os
import pickle
import zipfile

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from checkpoint_checks import sentence

from jmudsc.checkpoints.load import load
from jmudsc.checkpoints.save import save_variables


def test_a_flipped_bit_in_an_npz_file(tmp_path):
    path = save_variables(tmp_path / "run.npz", {"w": jnp.arange(4096.0)})
    data = bytearray(path.read_bytes())
    data[8000] ^= 1
    path.write_bytes(data)
    expected = (
        f"{path}: expected a whole npz file, got one that cannot be read (BadZipFile: "
        "Bad CRC-32 for file 'w.npy'). Copy it again."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


@pytest.mark.parametrize("lazy", [False, True])
def test_npz_arrays_of_another_byte_order(lazy, tmp_path):
    np.savez(tmp_path / "run.npz", w=np.arange(3, dtype=">f4"))
    found = load(tmp_path / "run.npz", lazy=lazy)
    assert found["w"].dtype == np.dtype("=f4")
    np.testing.assert_array_equal(np.asarray(found["w"]), [0, 1, 2])


def test_two_members_of_one_name(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, a=np.zeros(1), b=np.ones(1))
    path.write_bytes(path.read_bytes().replace(b"b.npy", b"a.npy"))
    expected = (
        f"{path}: expected a whole npz file, got one that cannot be read (two members "
        'are named "a.npy"). Copy it again.'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_objects_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.npz"
    np.savez(path, w=np.ones(2), o=np.array([Trap()], object))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("data.pkl", pickle.dumps(Trap()))
    expected = (
        f"{path}: expected arrays of numbers, got Python objects in 2 of 3 members. "
        "Save them as numbers, nothing is ever unpickled:\n  o.npy\n  data.pkl"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)
    array = msgpack.packb(((1,), "O", pickle.dumps(Trap())))
    path = tmp_path / "run.msgpack"
    path.write_bytes(msgpack.packb({"o": msgpack.ExtType(1, array)}))
    with pytest.raises(ValueError, match="cannot create an OBJECT array"):
        load(path)
    assert not (tmp_path / "trapped").exists()
