"""Files written atomically, locks, and lines of JSON.

    with atomic_write(path) as file:
        file.write(data)
"""

import fcntl
import json
import logging
import os
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("rzz")


@contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file next to `path` that takes its place when the block ends without an error.

    The data is on the disk before the name is (fsync of file, rename, fsync of folder), so that a crash at any
    moment leaves either the old file or the new one. On an error the temporary file is removed and `path` is as
    it was. Raises OSError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder):
    """Make renames in `folder` durable. Windows and some network drives cannot; there the rename alone must do."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def quarantine(path):
    """Rename `path` to the first free name of the form `<path>.bad-<n>` and return that name."""
    path = Path(path)
    number = 1
    while (aside := path.with_name(f"{path.name}.bad-{number}")).exists():
        number += 1
    os.replace(path, aside)
    return aside


@contextmanager
def exclusive_lock(path, owner, wait=False):
    """Hold `path` as a lock within the block; the system releases it when the process ends, however it ends.

    Yields None, or what the holder wrote as its `owner` if another process holds the lock; with `wait` it waits for
    the other to end instead. If the file system knows no locks (some network drives) nothing is held and nothing is
    said.
    """
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            yield file.read().strip() or "another process"
            return
        except OSError:
            pass
        file.truncate(0)
        file.write(owner)
        file.flush()
        yield None


def append_json_lines(path, objects):
    """Append `objects` to `path`, a line of JSON each, in one piece, on lines of their own also after one that was cut short."""
    with open(path, "ab+") as file:
        if file.tell() and file.seek(-1, 2) and file.read(1) != b"\n":
            file.write(b"\n")
        file.write(b"".join(json.dumps(values).encode() + b"\n" for values in objects))


def write_json_lines(path, objects):
    """Replace `path` by a file of `objects`, one line of JSON each."""
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(values) + "\n" for values in objects)


def read_json_lines(path):
    """Return the objects of a file of JSON lines; none if there is no file. A line cut short is left out."""
    if not path.exists():
        return []
    objects = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            objects.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            log.warning("%s: a line that is no JSON object was left out: %.60s", path.name, line)
    return objects
