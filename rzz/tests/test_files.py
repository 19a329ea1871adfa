"""Files are written whole or not at all, on drives with habits of their own too, and cleaning up never costs a result."""

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from common import files
from common.config import require_writable
from common.files import (
    NUMBER,
    NUMBER_OR_NONE,
    atomic_write,
    free_name,
    has_shape,
    quarantine,
    read_json,
    read_json_lines,
    remove,
    remove_abandoned,
)


def failing(code):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    return fail


def written(path, text):
    with atomic_write(path, "w") as file:
        file.write(text)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_drive_that_does_not_know_fsync_is_written_to_all_the_same(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", failing(code))
    written(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_fsync_that_fails_is_an_error_that_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, code):
    written(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", failing(code))
    with pytest.raises(OSError) as caught:
        written(tmp_path / "a", "new")
    assert caught.value.errno == code and caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_temporary_file_that_cannot_be_removed_does_not_hide_the_true_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    monkeypatch.setattr(files.Path, "unlink", failing(errno.EBUSY))
    with pytest.raises(OSError) as caught:
        written(tmp_path / "a", "new")
    assert caught.value.errno == errno.EIO


def test_what_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "folder" / "file").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", failing(errno.ENOTEMPTY))
        patch.setattr(files.Path, "unlink", failing(errno.EBUSY))
        remove(tmp_path / "folder", tmp_path / "nothing")
    assert os.strerror(errno.ENOTEMPTY) in caplog.text and os.strerror(errno.EBUSY) in caplog.text
    remove(tmp_path / "folder", tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_killed_processes_are_removed_by_the_next_start_and_others_are_left(tmp_path):
    (tmp_path / "last.pt").write_text("kept")
    code = ("import os, signal, sys; sys.path.insert(0, sys.argv[2]); from common.files import atomic_write\n"
            "with atomic_write(sys.argv[1]) as file: os.kill(os.getpid(), signal.SIGKILL)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "last.pt"), str(files.Path(files.__file__).parents[1])])
    (abandoned,) = tmp_path.glob(".last.pt.*.tmp")
    mine = tmp_path / f".last.pt.{platform.node()}.{os.getpid()}.tmp"
    elsewhere = tmp_path / ".last.pt.another-machine.1.tmp"
    odd = tmp_path / f".last.pt.{platform.node()}.number.tmp"
    for path in (mine, elsewhere, odd):
        path.touch()
    require_writable(tmp_path)
    assert not abandoned.exists() and all(path.exists() for path in (mine, elsewhere, odd, tmp_path / "last.pt"))
    remove_abandoned(tmp_path / "no folder")


def test_names_that_are_taken_are_passed_over(tmp_path):
    assert free_name(tmp_path / "a") == tmp_path / "a-1"
    (tmp_path / "a-1").mkdir()
    (tmp_path / "a-2").symlink_to("nowhere")
    assert free_name(tmp_path / "a") == tmp_path / "a-3"
    names = []
    for number in range(3):
        written(tmp_path / "b", str(number))
        names.append(quarantine(tmp_path / "b").name)
    assert names == ["b.bad-1", "b.bad-2", "b.bad-3"] and (tmp_path / "b.bad-2").read_text() == "1"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES])
def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch, code):
    path = tmp_path / "a.json"
    path.write_text("{}")

    def drop(path):  # as read(2) does, in which case Python does not say of which file
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "read_bytes", drop)
    for read in (read_json, read_json_lines):
        with pytest.raises(OSError, match="a.json"):
            read(path, {"x": int})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value, shape, fits", [
    ({"a": 1, "b": 2}, {"a": int}, True),
    ({"b": 2}, {"a": int}, False),
    ({"a": "1"}, {"a": int}, False),
    ({"b": 2}, {"a": NUMBER_OR_NONE}, False),
    ({"a": None}, {"a": NUMBER_OR_NONE}, True),
    ({"kind": "b"}, ({"kind": "a"}, {"kind": ("c", "b")}), True),
    ({"kind": ["b"]}, {"kind": ("c", "b")}, False),
    ({"a": {"x": 1, "y": 2.5}}, {"a": {...: NUMBER}}, True),
    ({"a": {"x": 1, "y": None}}, {"a": {...: NUMBER}}, False),
    ({"a": {}}, {"a": {...: NUMBER, "x": NUMBER}}, False),
    ([1], {}, False),
    (None, dict, False),
])  # fmt: skip
def test_what_was_read_has_the_shape_that_is_counted_on(value, shape, fits):
    assert has_shape(value, shape) == fits
