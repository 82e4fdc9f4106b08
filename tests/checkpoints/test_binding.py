"""Which record is of which file, and what may be replaced because of it."""

import json
import os
import re
import shutil
from pathlib import Path

import checkpoint_writers as writers
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_checks import assert_same, names_in, script, sentence

from jmudsc.checkpoints import atomic, provenance, save as saving
from jmudsc.checkpoints.atomic import building_both
from jmudsc.checkpoints.load import load
from jmudsc.checkpoints.save import save_variables
from jmudsc.merging.save_result import load_provenance, save

RACES = script("race_saves")
ENDINGS = ["", ".safetensors", ".npz", ".msgpack"]
FILES = ENDINGS[1:]
TREE = {"w": [jnp.ones(2), (jnp.zeros(1), None)]}


def result_of(tree=TREE, **recipe):
    return writers.result_of(tree, recipe=recipe)


def record_of(path):
    inside = path / "jmudsc" if path.is_dir() else Path(f"{path}.jmudsc")
    return inside / "provenance.json"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_record_is_found_through_symbolic_links(ending, tmp_path):
    path = save(tmp_path / f"merged{ending}", result_of(alpha=1))
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / f"best{ending}"
    link.symlink_to(path)
    assert_same(load(link), TREE)
    assert load_provenance(link)["recipe"] == {"alpha": 1}


@pytest.mark.parametrize("ending", FILES)
def test_a_record_beside_a_link_is_found_where_files_are_elsewhere(ending, tmp_path):
    path = save(tmp_path / f"merged{ending}", result_of(alpha=1))
    (tmp_path / "blobs").mkdir()
    path.rename(tmp_path / "blobs" / "0a1b2c")
    path.symlink_to(Path("blobs") / "0a1b2c")
    assert_same(load(path), TREE)
    assert load_provenance(path)["recipe"] == {"alpha": 1}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_merge_that_is_moved_or_copied_keeps_its_record(ending, tmp_path):
    path = save(tmp_path / f"merged{ending}", result_of(alpha=1))
    other = tmp_path / "deep" / f"other{ending}"
    other.parent.mkdir()
    copy = shutil.copytree if path.is_dir() else shutil.copy
    copy(path, other)
    if ending:
        shutil.copytree(f"{path}.jmudsc", f"{other}.jmudsc")
    assert_same(load(other), TREE)
    save(other, result_of(), overwrite=True)


def put_file_only(path, tree, recipe):
    """Save, and stop between the file and its record."""
    put, both = atomic._put, []

    def interrupted(temporary, target, token, overwrite):
        if both:
            raise KeyboardInterrupt
        both.append(put(temporary, target, token, overwrite))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "_put", interrupted)
        patch.setattr(atomic, "_made", lambda token, *targets: [])
        with pytest.raises(KeyboardInterrupt):
            save(path, writers.result_of(tree, recipe=recipe), overwrite=True)


@pytest.mark.parametrize("ending", FILES)
def test_a_file_in_place_before_its_record_has_it_nevertheless(ending, tmp_path):
    path = save(tmp_path / f"merged{ending}", result_of(alpha=1))
    for number in (2, 3):
        tree = {"v": [jnp.full(3, number)]}
        put_file_only(path, tree, {"alpha": number})
        assert_same(load(path), tree)
        assert load_provenance(path)["recipe"] == {"alpha": number}
    save(path, result_of(alpha=4), overwrite=True)
    assert_same(load(path), TREE)
    assert load_provenance(path)["recipe"] == {"alpha": 4}
    assert names_in(tmp_path) == [path.name, f"{path.name}.jmudsc"]


@pytest.mark.parametrize("ending", FILES)
def test_builds_of_one_target_at_once_leave_each_other_alone(ending, tmp_path):
    path = tmp_path / f"merged{ending}"
    other = tmp_path / f"merged{ending}.jmudsc"
    with building_both(path, other, overwrite=True) as (file, folder):
        folder.mkdir()
        save(path, result_of(), overwrite=True)
        assert folder.is_dir()
        file.write_bytes(path.read_bytes())
        shutil.copytree(other, folder, dirs_exist_ok=True)
    assert_same(load(path), TREE)
    assert names_in(tmp_path) == [path.name, other.name]


FOREIGN = "changed or other files, which overwrite=True never removes"


@pytest.mark.parametrize("place", ["notes.txt", "jmudsc/mine.txt", "d/notes", "empty/"])
def test_what_others_put_into_a_merge_is_never_removed(place, tmp_path):
    path = save(tmp_path / "merged", result_of())
    mine = path / place
    if place.endswith("/"):
        mine.mkdir()
    else:
        mine.write_text("mine")
    expected = (
        f"{path}: expected nothing but what jmudsc saved, got 1 {FOREIGN}. Move them "
        f"away or choose another path:\n  merged/{place.rstrip('/')}"
    )
    with pytest.raises(FileExistsError, match=sentence(expected)):
        save(path, result_of({"v": jnp.ones(1)}), overwrite=True)
    assert mine.exists()
    assert_same(load(path), TREE)


@pytest.mark.parametrize("ending", FILES)
def test_what_others_put_beside_a_merged_file_is_never_removed(ending, tmp_path):
    path = save(tmp_path / f"merged{ending}", result_of())
    mine = tmp_path / f"{path.name}.jmudsc" / "mine.txt"
    mine.write_text("mine")
    expected = f"got 1 {FOREIGN}. Move them away or choose another path:\n  {path.name}"
    with pytest.raises(FileExistsError, match=re.escape(expected)):
        save(path, result_of({"v": jnp.ones(1)}), overwrite=True)
    assert mine.read_text() == "mine"
    path.unlink()  # the folder alone
    with pytest.raises(FileExistsError, match=re.escape(FOREIGN)):
        save(path, result_of())


def test_a_note_that_was_edited_is_never_removed(tmp_path):
    notes = {"report.md": "# Merge"}
    path = save(tmp_path / "merged", result_of(), notes=notes)
    save(path, result_of(), notes=notes, overwrite=True)
    report = path / "jmudsc" / "report.md"
    report.write_text("# Merge\nThe best so far.")
    with pytest.raises(FileExistsError, match=re.escape("merged/jmudsc/report.md")):
        save(path, result_of(), overwrite=True)
    assert report.exists()


@pytest.mark.parametrize("ending", FILES)
def test_a_file_put_in_the_place_of_a_merge_is_never_replaced(ending, tmp_path):
    path = save(tmp_path / f"merged{ending}", result_of({"w": jnp.ones(4)}))
    other = save_variables(tmp_path / f"other{ending}", {"w": jnp.zeros(4)})
    assert other.stat().st_size == path.stat().st_size
    os.replace(other, path)
    content = path.read_bytes()
    with pytest.raises(FileExistsError, match=re.escape(f"got 1 {FOREIGN}")):
        save(path, result_of(), overwrite=True)
    assert path.read_bytes() == content


def test_what_comes_into_a_merge_while_another_is_built_is_kept(tmp_path, monkeypatch):
    path = save(tmp_path / "merged", result_of())
    written = saving._written

    def and_a_note(*arguments):
        (path / "notes.txt").write_text("mine")
        return written(*arguments)

    monkeypatch.setattr(saving, "_written", and_a_note)
    with pytest.raises(FileExistsError, match=re.escape("merged/notes.txt")):
        save(path, result_of({"v": jnp.ones(1)}), overwrite=True)
    assert (path / "notes.txt").read_text() == "mine"
    assert names_in(tmp_path) == ["merged"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("damage", [b"", b"[" * 10**5, b"\xff", b'{"format": 2}', b"3"])
def test_a_damaged_record_is_one_sentence_and_nothing_is_replaced(
    ending, damage, tmp_path
):
    path = save(tmp_path / f"merged{ending}", result_of())
    record = record_of(path)
    record.write_bytes(damage)
    expected = (
        f"{record}: expected it as it was saved, got it changed or damaged. Copy the "
        "checkpoint again or repeat the merge."
    )
    for read in (load, load_provenance):
        with pytest.raises(ValueError, match=sentence(expected)):
            read(path)
    expected = (
        f"{path}: expected what jmudsc saved, got something else, which "
        "overwrite=True never replaces. Remove it yourself or choose another path:\n"
        f"  {expected}"
    )
    with pytest.raises(FileExistsError, match=sentence(expected)):
        save(path, result_of(), overwrite=True)


LACKING = ["structure", "digests", "files", "beside", "format"]


@pytest.mark.parametrize("key", LACKING)
@pytest.mark.parametrize("value", [None, 3, {"a": 1}, [["a"]], {"dict": [["a", "b"]]}])
def test_a_sealed_record_of_another_form_is_one_sentence(key, value, tmp_path):
    path = save(tmp_path / "merged.npz", result_of())
    record = record_of(path)
    content = json.loads(record.read_text())
    del content["digest"]
    if key == "format" and value == 3:
        return  # a later version, which has a sentence of its own
    content[key] = value
    content["digest"] = provenance._seal(content)
    record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"^{re.escape(str(record))}: expected it as"):
        load(path)


def as_first_format(path, variables, **known):
    """Write the record that the first version wrote beside variables."""
    digests = {k: provenance.leaf_digest(x) for k, x in variables.items()}
    content = {
        "format": 1,
        "recipe": {"alpha": 1},
        "digests": digests,
        "assignment": {},
    }
    content |= known
    content["digest"] = provenance._seal(content)
    record_of(path).parent.mkdir()
    record_of(path).write_text(json.dumps(content))
    np.savez(record_of(path).with_name("assignment.npz"))


def test_a_file_with_a_record_of_the_first_format_loads(tmp_path):
    leaves = {"w/0": np.ones(2, "f4"), "w/1": np.zeros(1, "f4"), "a/b/c": np.ones(1)}
    path = save_variables(tmp_path / "merged.npz", leaves)
    keys = {"w/0": ["w", 0], "w/1": ["w", 1], "a/b/c": ["a/b", "c"]}
    as_first_format(path, leaves, nnx=False, keys=keys)
    expected = {"w": [np.ones(2, "f4"), np.zeros(1, "f4")], "a/b": {"c": np.ones(1)}}
    assert_same(load(path), {**expected, "a/b": {"c": jnp.ones(1)}})
    assert load_provenance(path)["recipe"] == {"alpha": 1}
    with pytest.raises(FileExistsError, match="expected what jmudsc saved, got some"):
        save(path, result_of(), overwrite=True)


def test_a_directory_with_a_record_of_the_first_format_loads(tmp_path):
    tree = {"w": {"value": np.ones(2, "f4")}, "v": {"value": np.zeros(1, "f4")}}
    path = save_variables(tmp_path / "merged", tree)
    leaves = {f"{k}/value": x["value"] for k, x in tree.items()}
    as_first_format(path, leaves, nnx=True)
    assert_same(load(path), {"w": np.ones(2, "f4"), "v": np.zeros(1, "f4")})


def test_a_bit_of_a_name_in_a_msgpack_file(tmp_path):
    path = save(tmp_path / "merged.msgpack", result_of({"params": {"w": jnp.ones(2)}}))
    content = bytearray(path.read_bytes())
    content[content.index(b"params")] ^= 1
    path.write_bytes(content)
    expected = (
        f"{path}: expected all leaves that jmudsc saved and no others, got 2 that "
        "differ. Copy the checkpoint again:\n  params/w: is missing\n"
        "  qarams/w: is not of it"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path, "params", lazy=True)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_longer_than_it_was_is_told(ending, tmp_path):
    path = save(tmp_path / f"merged{ending}", result_of())
    file = path / "_METADATA" if not ending else path
    with file.open("ab") as opened:
        opened.write(b" ")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: expected "):
        load(path, lazy=True)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_two_saves_at_once_leave_one_whole_state(ending, tmp_path):
    seen = RACES.run(tmp_path, ending, 1, kill=None)
    assert seen.wrong == ()
    assert seen.reads > 0


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_save_that_is_killed_leaves_one_whole_state(ending, tmp_path):
    assert RACES.run(tmp_path, ending, 1, kill=0.7).wrong == ()
