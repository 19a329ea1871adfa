"""Files that are either wholly there or not there at all.

    with atomic_write(path) as file:
        file.write(data)
"""

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path` that takes its place when the block ends without an error.

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


def move_aside(path):
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

    Yields None, or what the holder wrote as its `owner` where another process holds the lock; with `wait` it waits for
    the other to end instead. Where the file system knows no locks (some network drives) nothing is held and nothing is
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
