"""Files that are whole or not there, and on the disk when a call returns."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Put `content` into `path` in place of what was there: whole, and on the disk with its name."""
    beside = path.with_name(f"{path.name}.writing")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def append(path: Path, text: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Add `text` to `path`, whole or not at all, unless the machine stops in between; on the disk with its name.

    durable: False leaves the disk to the system (a simulation).
    """
    new = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
    try:
        before = os.fstat(handle).st_size
        try:
            while text:
                text = text[os.write(handle, text) :]
            if durable:
                os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)
    if new and durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A file's new name is on the disk only when its folder is."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
