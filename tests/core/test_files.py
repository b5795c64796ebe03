"""A file is old or new, and whole; what can't be read is named."""

import errno
import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest

from hsakd_jax.core import files
from hsakd_jax.core.errors import UserError
from hsakd_jax.core.files import (
    InvalidContent,
    check_folder,
    expand,
    lock,
    read_json,
    read_names,
    write_files,
    write_json,
)


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


def test_drafts_of_a_killed_process_are_deleted_at_the_next_write(tmp_path):
    path = tmp_path / "a[b].html"
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = [f".{path.name}.{ended.pid}.draft", f".{path.name}.{2**70}.draft", f".{path.name}.{os.getpid()}.draft"]
    others = [f".{path.name}.{os.getppid()}.draft", f".x.{ended.pid}.draft", f".{path.name}.x.draft"]
    for name in left + others:
        (tmp_path / name).touch()
    write_files({path: b"new"})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, *others])


def test_json_that_is_no_small_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(InvalidContent, match="is no file of at most 64 MiB"):
            read_json(tmp_path / name, dict)
    monkeypatch.setattr(files, "MOST", 2)
    (tmp_path / "large").write_text("[1]")
    with pytest.raises(InvalidContent):
        read_json(tmp_path / "large", list)


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


def test_a_home_folder_that_is_not_there(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("~/runs") == Path("/home/me/runs")
    assert expand("runs/~x") == Path("runs/~x")
    with pytest.raises(UserError, match=r"~nobody_has_this_name/x: there is no such home folder: set HOME, or write"):
        expand("~nobody_has_this_name/x")
    with pytest.raises(UserError, match=r"gs://bucket/x is not a path of this machine: copy the files to a disk"):
        expand("gs://bucket/x")
    with pytest.raises(UserError, match="contains a null character"):
        expand("a\0b")


def test_a_lock_is_held_by_one(tmp_path, monkeypatch, capsys):
    first = lock(tmp_path / ".lock")
    with pytest.raises(BlockingIOError):
        lock(tmp_path / ".lock")
    waited = []
    monkeypatch.setattr(fcntl, "flock", lambda *given, flock=fcntl.flock: _freed(first, waited, flock, *given))
    os.close(lock(tmp_path / ".lock", waiting="waiting for another process"))
    assert waited
    assert capsys.readouterr().err == "waiting for another process\n"


def _freed(first, waited, flock, descriptor, how):
    """`flock`, where the one who holds the lock frees it once somebody waits."""
    if not how & fcntl.LOCK_NB:
        waited.append(os.close(first))
    flock(descriptor, how)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_warning(number, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    os.close(lock(tmp_path / ".lock"))
    line = f"warning: the file system of {tmp_path} has no locks: let no other process write there\n"
    assert capsys.readouterr().err == line
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        lock(tmp_path / ".lock")
