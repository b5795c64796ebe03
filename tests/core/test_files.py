"""A file is old or new, and whole; what can't be read is named."""

import json

import pytest

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import check_folder, read_json, read_names, write_files, write_json


def test_a_file_is_whole_or_the_old_one(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_all_files_stay_where_one_can_not_be_written(tmp_path):
    old, absent = tmp_path / "old", tmp_path / "none" / "x"
    old.write_bytes(b"old")
    with pytest.raises(OSError, match="none"):
        write_files({old: b"new", absent: b"new"})
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]


def test_json_that_is_damaged(tmp_path):
    path = tmp_path / "config.json"
    for content, reason in (
        ("{", "truncated"),
        ('{"a": "b"}', "Expected `int`, got `str`"),
        ("[" * 10**5, "not valid"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=f"config.json is .*{reason}"):
            read_json(path, dict[str, int])
    with pytest.raises(UserError, match="none can't be read: No such file"):
        read_json(tmp_path / "none", dict[str, int])


def test_names_of_classes(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("great crested newt\n\n eft \n")
    assert read_names(path, 2) == ["great crested newt", "eft"]
    path.write_text("\ufeffgreat crested newt\neft\n")
    assert read_names(path, 2) == ["great crested newt", "eft"]
    with pytest.raises(UserError, match="names.txt contains 2 class names, the network has 3 classes"):
        read_names(path, 3)
    with pytest.raises(UserError, match="none.txt can't be read .*: use a text file with one class per line"):
        read_names(tmp_path / "none.txt", 2)


def test_an_output_needs_its_folder(tmp_path):
    check_folder(tmp_path / "x.html")
    with pytest.raises(UserError, match="none is not a folder: create it, or choose another --output"):
        check_folder(tmp_path / "none" / "x.html")
