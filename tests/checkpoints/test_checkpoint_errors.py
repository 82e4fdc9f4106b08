"""Every way in which a checkpoint can be wrong has a sentence of its own."""

import hashlib
import json
import os
import re

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc.checkpoints import save as saving
from jmudsc.checkpoints.load import load
from jmudsc.merging.save_result import load_provenance, save


def sentence(text):
    return f"^{re.escape(text)}$"


def largest_file(path):
    return max((x for x in path.rglob("*") if x.is_file()), key=os.path.getsize)


@pytest.fixture
def big_tree(key):
    return {f"leaf_{i}": jax.random.normal(key, (64, 64)) for i in range(8)}


@pytest.fixture
def merged(tmp_path, big_tree):
    return save(tmp_path / "merged", writers.result_of(big_tree))


def test_nothing_there(tmp_path):
    expected = f"{tmp_path}/run: does not exist, needed a checkpoint; check the path."
    with pytest.raises(FileNotFoundError, match=sentence(expected)):
        load(tmp_path / "run")


def test_an_empty_directory(tmp_path):
    expected = (
        f"{tmp_path}: is an empty directory, needed an orbax checkpoint; "
        "check the path."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(tmp_path)


def test_a_file(tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(b"\x80\x02}q\x00.")
    expected = (
        f"{file}: is a file of no format that can be read, needed .safetensors, .npz, "
        ".msgpack or the directory of an orbax checkpoint; nothing is ever unpickled, "
        "convert it where it was made."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(file)


def test_a_directory_of_something_else(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "model.npz").write_bytes(b"")
    expected = (
        f"{tmp_path}: is not an orbax checkpoint (no _METADATA in it or its folders), "
        "needed the directory of one; check the path."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b""], ids=["cut", "0"]
)
def test_a_cut_data_file(tmp_path, big_tree, damage):
    path = writers.standard(tmp_path / "run", big_tree)
    file = largest_file(path)
    file.write_bytes(damage(file.read_bytes()))
    expected = (
        re.escape(f'{path}: cannot be read (OUT_OF_RANGE: Error reading "leaf_')
        + r"\d/0\.0\".*"
        + re.escape(
            "), needed a whole orbax checkpoint; copy it again or use another step."
        )
    )
    with pytest.raises(ValueError, match=f"^{expected}$") as raised:
        load(path)
    assert len(str(raised.value)) < 400


def test_cut_metadata(tmp_path):
    path = writers.standard(tmp_path / "run", {"w": jnp.ones(2)})
    (path / "_METADATA").write_text('{"tree_metadata": {')
    expected = (
        f"{path}: cannot be read (JSONDecodeError: Expecting property name enclosed in "
        "double quotes: line 1 column 20 (char 19)), needed a whole orbax checkpoint; "
        "copy it again or use another step."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


@pytest.mark.parametrize("write", [writers.standard, writers.manager_step])
def test_missing_metadata(write, tmp_path):
    path = write(tmp_path / "run", {"w": jnp.ones(2)})
    next(path.rglob("_METADATA")).unlink()
    expected = (
        f"{path}: has no _METADATA, needed a finished orbax checkpoint of arrays; its "
        "save was interrupted or files were lost, use another step or copy it again."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


def test_an_interrupted_save_beside_the_path(tmp_path):
    path = writers.standard(tmp_path / "run", {"w": jnp.ones(2)})
    left = path.rename(tmp_path / "run.orbax-checkpoint-tmp")
    expected = (
        f"{path}: was never finished, beside it is run.orbax-checkpoint-tmp of an "
        "interrupted save; use another step or save again."
    )
    with pytest.raises(FileNotFoundError, match=sentence(expected)):
        load(path)
    expected = (
        f"{left}: is what an interrupted save left, needed a finished checkpoint; use "
        "another step or save again."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(left)


def test_a_manager_directory_lists_its_steps(tmp_path):
    writers.manager_step(tmp_path, {"w": jnp.ones(2)}, steps=(2, 10))
    (tmp_path / "11.orbax-checkpoint-tmp").mkdir()
    expected = (
        f"{tmp_path}: holds checkpoints, needed one of them; give {tmp_path}/10 or "
        "another of:\n  10\n  2"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(tmp_path)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_directory_of_flax_checkpoints_lists_them(is_old, tmp_path):
    path = writers.flax_training(tmp_path, {"w": jnp.ones(2)})
    if is_old:
        (path / "_CHECKPOINT_METADATA").unlink()
    expected = (
        f"{tmp_path}: holds checkpoints, needed one of them; give {path} or "
        "another of:\n  checkpoint_7"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(tmp_path)


def test_several_items_are_listed(tmp_path):
    step = writers.composite(tmp_path, params={"w": jnp.ones(2)}, state={"n": 1})
    expected = (
        f"{step}: holds items, needed one of them; give {step}/state or another of:\n"
        "  state\n  params"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(step)


PARAMS = "\n  params/layers\n  params/w"


@pytest.mark.parametrize(
    ("subtree", "rest"),
    [
        ("parms", '; did you mean "params"?:\n  masks\n  params'),
        ("params/kernel", ":" + PARAMS),
        (
            "params/layer",
            '; did you mean "params/layers"?:\n  params/layers\n  params/w',
        ),
        ("params/layers/2", ":\n  params/layers/0\n  params/layers/1"),
        ("params/w/x", '; did you mean "params/w"?:' + PARAMS),
    ],
)
def test_a_subtree_that_is_not_there(subtree, rest, tmp_path):
    pair = [jnp.ones(1), jnp.ones(1)]
    tree = {"params": {"w": jnp.ones(2), "layers": pair}, "masks": jnp.ones(1)}
    path = writers.standard(tmp_path / "run", tree)
    expected = f'{path}: has no subtree "{subtree}", needed one that is there{rest}'
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path, subtree)


def test_two_parts_of_one_name(tmp_path):
    tree = {"a": {"params": jnp.ones(1)}, "b": {"params": jnp.ones(1)}}
    path = writers.standard(tmp_path / "run", tree)
    expected = (
        "subtree: of ['a/params', 'b/params'] two end in the same word, needed "
        "distinct ones to name the parts by; load them one at a time."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path, ("a/params", "b/params"))


def test_text_among_the_arrays(tmp_path):
    path = writers.pytree(tmp_path / "run", {"name": "vit", "params": jnp.ones(1)})
    expected = (
        f"{path}: leaf \"name\" is 'vit', needed numbers; name the subtree to load, "
        'for instance subtree="params".'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)
    assert load(path, "params") == 1


def test_a_leaf_that_32_bits_cannot_hold(tmp_path):
    path = writers.standard(tmp_path / "run", {"w": np.array([0.1])})
    expected = (
        f'{path}: leaf "w" is float64 and would lose digits, needed 64-bit types; call '
        'jax.config.update("jax_enable_x64", True) first.'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


def test_a_flipped_bit_names_the_leaf(merged, big_tree):
    file = largest_file(merged)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    expected = (
        f"{merged}: 1 of 8 leaves are not what jmudsc saved, needed all unchanged; "
        "copy the checkpoint again:\n  leaf_"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}[0-7]$") as raised:
        load(merged)
    damaged = str(raised.value)[-6:]
    others = {k: leaf for k, leaf in big_tree.items() if k != damaged}
    whole = load(merged, list(others))
    jax.tree.map(np.testing.assert_array_equal, whole, others)


def test_a_leaf_lost_from_the_metadata_is_named(merged):
    metadata = json.loads((merged / "_METADATA").read_text())
    del metadata["tree_metadata"]["('leaf_3',)"]
    (merged / "_METADATA").write_text(json.dumps(metadata))
    expected = (
        f"{merged}: 1 of 2 leaves are not what jmudsc saved, needed all unchanged; "
        "copy the checkpoint again:\n  leaf_3"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(merged, "leaf_0")


@pytest.mark.parametrize(
    ("old", "new"), [(b'"alpha": 0.5', b'"alpha": 0.6'), (b"{", b""), (b"{", b"[")]
)
def test_a_changed_record(tmp_path, old, new):
    result = writers.result_of({"w": jnp.ones(2)}, recipe={"alpha": 0.5})
    path = save(tmp_path / "merged", result)
    record = path / "jmudsc" / "provenance.json"
    record.write_bytes(record.read_bytes().replace(old, new, 1))
    expected = (
        f"{record}: was changed or damaged after it was saved, needed it unchanged; "
        "copy the checkpoint again or repeat the merge."
    )
    for read in (load, load_provenance):
        with pytest.raises(ValueError, match=sentence(expected)):
            read(path)


def test_a_lost_record(merged):
    record = merged / "jmudsc" / "provenance.json"
    record.unlink()
    with pytest.raises(ValueError, match=f"^{re.escape(str(record))}: was changed"):
        load(merged)


def test_a_record_of_another_format(merged):
    record = merged / "jmudsc" / "provenance.json"
    text = json.dumps({"format": 2}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    record.write_text(json.dumps({"digest": digest, "format": 2}))
    expected = (
        f"{record}: has format 2, needed 1; read it with the version of jmudsc that "
        "saved it."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(merged)


@pytest.mark.parametrize("damage", ["cut", "missing", "replaced"])
def test_a_changed_assignment(merged, damage):
    file = merged / "jmudsc" / "assignment.npz"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    if damage == "missing":
        file.unlink()
    if damage == "replaced":
        np.savez(file, **{"assignment/P_0": np.zeros((2, 2), np.int32)})
    expected = (
        f"{file}: was changed or damaged after it was saved, needed it unchanged; copy "
        "the checkpoint again or repeat the merge."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load_provenance(merged)


def test_provenance_of_a_checkpoint_that_is_no_merge(tmp_path):
    path = writers.standard(tmp_path / "run", {"w": jnp.ones(2)})
    expected = (
        f"{path}: has no record of a merge, needed a checkpoint that jmudsc saved; "
        "load its arrays with jmudsc.load(path)."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load_provenance(path)


def test_something_at_the_output(merged):
    expected = (
        f"{merged}: exists, needed a new path; choose another or pass "
        "overwrite=True (--overwrite)."
    )
    with pytest.raises(FileExistsError, match=sentence(expected)):
        save(merged, writers.result_of({"w": jnp.ones(2)}))
    assert len(load(merged)) == 8


def test_who_comes_second_leaves_the_first_its_record(tmp_path, monkeypatch):
    path = tmp_path / "merged.npz"
    write = saving._write_file

    def after_another(*arguments):
        monkeypatch.setattr(saving, "_write_file", write)
        save(path, writers.result_of({"w": jnp.ones(2)}, recipe={"alpha": 0.1}))
        return write(*arguments)

    monkeypatch.setattr(saving, "_write_file", after_another)
    with pytest.raises(FileExistsError, match="was made by another process meanwhile"):
        save(path, writers.result_of({"w": jnp.zeros(2)}))
    assert load_provenance(path)["recipe"] == {"alpha": 0.1}
    np.testing.assert_array_equal(load(path)["w"], np.ones(2))


def test_overwriting_something_that_is_no_merge(tmp_path):
    path = writers.standard(tmp_path / "parent", {"w": jnp.ones(2)})
    expected = (
        f"{path}: exists and was not saved by jmudsc, which overwrite=True never "
        "replaces; remove it yourself or choose another path."
    )
    with pytest.raises(FileExistsError, match=sentence(expected)):
        save(path, writers.result_of({"w": jnp.zeros(2)}), overwrite=True)
    np.testing.assert_array_equal(load(path, "w"), np.ones(2))


def test_saving_to_a_url(tmp_path):
    expected = (
        "gs://bucket/merged: is a URL, needed a local directory, where a rename is "
        "atomic; save locally and copy the directory."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save("gs://bucket/merged", writers.result_of({"w": jnp.ones(2)}))


@pytest.mark.parametrize("name", ["merged.pt", "merged.H5"])
def test_saving_as_a_file_that_is_not_written(name, tmp_path):
    expected = (
        f"{tmp_path / name}: ends in {name[6:].lower()}, a format that is not written, "
        "needed .safetensors, .npz, .msgpack, or none for an orbax checkpoint; choose "
        "another name."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / name, writers.result_of({"w": jnp.ones(2)}))
    assert not list(tmp_path.iterdir())


def test_saving_from_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    expected = (
        f"{tmp_path}/merged: this is one of 2 processes, needed a single one to save; "
        "gather the variables, and save them there, or in process 0 as a file, "
        "merged.safetensors say."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / "merged", writers.result_of({"w": jnp.ones(2)}))


REFUSED = {
    "empty": (jnp.ones((0, 3)), "has shape (0, 3), which has no elements"),
    "key": (jax.random.key(0), "is a PRNG key; use jax.random.key_data"),
    "text": (np.array("a"), "has dtype <U1"),
    "object": (object(), "is a object, not an array"),
    "small": (jnp.ones(2, jnp.uint4), "has dtype uint4"),
}


def test_leaves_that_orbax_cannot_hold(tmp_path):
    tree = {"w": jnp.ones(2)} | {name: leaf for name, (leaf, _) in REFUSED.items()}
    lines = [f"  {name}: {REFUSED[name][1]}" for name in sorted(REFUSED)]
    expected = (
        "variables: orbax cannot save 5 of 6 leaves, needed arrays of numbers; remove "
        "or convert them:\n" + "\n".join(lines)
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / "merged", writers.result_of(tree))
    assert not list(tmp_path.iterdir())


def test_no_arrays_at_all(tmp_path):
    expected = "variables: hold no arrays, needed at least one; pass a finished merge."
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / "merged", writers.result_of({"params": {}}))


def test_leaves_that_orbax_would_store_under_one_name(tmp_path):
    tree = {"a": {"b": jnp.ones(1)}, "a.b": jnp.zeros(1)}
    expected = (
        "variables: orbax gives back 1 of 2 leaves changed, needed names that differ "
        'even where "/" and "." count as one; rename:\n  a'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
        save(tmp_path / "merged", writers.result_of(tree))
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written(tmp_path):
    path = tmp_path / ("x" * 240)
    expected = re.escape(
        f"{path}: orbax could not write it (OSError: [Errno 36] File name too long: "
    )
    end = re.escape("), needed room and the right to write; nothing was left there.")
    with pytest.raises(ValueError, match=f"^{expected}.*{end}$"):
        save(path, writers.result_of({"w": jnp.ones(2)}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ending", "name"), [("safetensors", "__metadata__"), ("npz", "a\0b")]
)
def test_a_name_that_means_something_else_in_a_file(ending, name, tmp_path):
    path = tmp_path / f"merged.{ending}"
    expected = (
        f"{path}: cannot be read back, needed names of leaves that mean nothing else "
        "in such a file; rename some, or save with orbax:\n"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
        save(path, writers.result_of({name: jnp.ones(2)}))
    assert not list(tmp_path.iterdir())
