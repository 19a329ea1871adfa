"""Files written atomically, locks, and lines of JSON.

    with atomic_write(path) as file:
        file.write(data)
"""

import errno
import fcntl
import itertools
import json
import logging
import os
import platform
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType

log = logging.getLogger("rzz")
WITHOUT_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # what drives say that do not know fsync
NUMBER = (int, float)  # for has_shape
NUMBER_OR_NONE = (int, float, NoneType)


def remedy(error):
    """Return what to do about an OSError of a file, as a clause."""
    return "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it accessible"


@contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file next to `path` that takes its place when the block ends without an error.

    The data is on the disk before the name is (fsync of file, rename, fsync of folder), so that a crash at any
    moment leaves either the old file or the new one. On an error the temporary file is removed and `path` is as
    it was. Raises OSError, with the name of the file, when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, **({} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"})) as file:
            yield file
            file.flush()
            fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def fsync(descriptor):
    """Wait until the disk has what was written, unless the drive does not know how to say so."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in WITHOUT_FSYNC:
            raise


def sync_folder(folder):
    """Make renames in `folder` durable. Windows cannot open one; there the rename alone must do."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(*paths):
    """Remove files and folders that are not needed any more; what cannot be removed is a warning."""
    for path in paths:
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("Could not remove %s (%s), which is not needed any more.", path, error.strerror)


def remove_abandoned(folder):
    """Remove temporary files of atomic_write in `folder` whose process on this machine has ended."""
    for path in folder.glob(f".*.{platform.node()}.*.tmp"):
        with suppress(ValueError, PermissionError):  # of somebody else's process, which lives
            try:
                os.kill(int(path.suffixes[-2][1:]), 0)
            except ProcessLookupError:
                remove(path)


def free_name(path, form="{}-{}"):
    """Return the first path of the `form` (name, number from 1) that nothing has; what is there may be a broken link."""
    paths = (path.with_name(form.format(path.name, number)) for number in itertools.count(1))
    return next(path for path in paths if not os.path.lexists(path))


def quarantine(path):
    """Rename `path` to the first free name of the form `<path>.bad-<n>` and return that name."""
    aside = free_name(Path(path), "{}.bad-{}")
    os.replace(path, aside)
    return aside


@contextmanager
def exclusive_lock(path, owner, wait=False):
    """Hold `path` as a lock within the block; the system releases it when the process ends, however it ends.

    owner: what the holder does, for those who find the lock. Yields None, or who the holder is if another process has it;
    with `wait` it names the holder and waits for it instead. If the file system knows no locks (some network drives) nothing
    is held.
    """
    with open(path, "a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if not wait:
                yield holder
                return
            log.info("Waiting for %s, which holds %s …", holder, path)
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, {owner}")
        file.flush()
        yield None


def append_json_lines(path, objects):
    """Append `objects` to `path`, a line of JSON each, in one write, also after a line that was cut short."""
    with open(path, "ab+") as file:
        if file.tell() and file.seek(-1, 2) and file.read(1) != b"\n":
            file.write(b"\n")
        file.write(b"".join(json.dumps(values).encode() + b"\n" for values in objects))


def write_json_lines(path, objects):
    """Replace `path` by a file of `objects`, one line of JSON each."""
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(values) + "\n" for values in objects)


def read_json_lines(path, shape=dict):
    """Return the objects of a file of JSON lines that have the `shape`, see has_shape; none if there is no file.

    A warning says how many others were left out: lines that were cut short, that lost a key, or of another version.
    """
    if not path.exists():
        return []
    objects, others = [], []
    for line in read_bytes(path).decode(errors="replace").splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if has_shape(found, shape):
            objects.append(found)
        else:
            others.append(line)
    if others:
        log.warning("%s: left out lines that are damaged or of another version: %d, the first %.60r", path, len(others), others[0])
    return objects


def read_json(path, shape):
    """Return the JSON object in `path`, None if there is none. A file that has not the `shape` is moved aside, with a warning."""
    try:
        found = json.loads(read_bytes(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        found = None
    if has_shape(found, shape):
        return found
    log.warning("%s is damaged or of another version; moved to %s and passed over", path, quarantine(path).name)
    return None


def read_bytes(path):
    """Return the content of a file. Raises OSError, with its name also if it was opened and a read fails."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        error.filename = str(path)
        raise


def has_shape(value, shape):
    """Whether what was read from a file is what the program counts on.

    shape: a type; a string, which `value` has to be; a tuple of alternatives; or a dictionary {key: shape} of what `value`, a
    dictionary too, has among its keys, with ... for all of its keys.
    """
    if isinstance(shape, tuple):
        return any(has_shape(value, each) for each in shape)
    if not isinstance(shape, dict):
        return isinstance(value, shape) if isinstance(shape, type) else value == shape
    return isinstance(value, dict) and all(
        all(has_shape(each, wanted) for each in value.values()) if key is ... else key in value and has_shape(value[key], wanted)
        for key, wanted in shape.items()
    )
