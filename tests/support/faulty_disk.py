"""Disks that fail: `os` as `dwtriton.core.files` sees it, folders as Python sees them, and a limit of the system."""

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dwtriton.core import files

FULL, BROKEN, READ_ONLY = errno.ENOSPC, errno.EIO, errno.EROFS
CHANGES = ("open", "write", "fsync", "replace", "link")  # calls that need the disk to work


class Killed(BaseException):
    """The process ends here, as far as that can be had without ending it: what was to be cleaned up is."""


class FaultyDisk:
    """Stands for the module `os`: the first `healthy` calls of CHANGES work, and all later ones fail with `number`.

    Without a number the process is killed: what it writes is lost, and the next other call raises Killed. `calls` are
    the names of all calls so far. Nothing is synced, which would take most of the time.
    """

    def __init__(self, healthy: float, number: int | None) -> None:
        self.healthy, self.number, self.calls = healthy, number, []

    def __getattr__(self, name: str):
        if name not in CHANGES:
            return getattr(os, name)

        def change(*arguments, **options):
            self.calls.append(name)
            if len(self.calls) > self.healthy and self.number is not None:
                raise OSError(self.number, os.strerror(self.number))
            if len(self.calls) > self.healthy and name == "write":
                return len(arguments[1])
            if len(self.calls) > self.healthy:
                raise Killed
            return None if name == "fsync" else getattr(os, name)(*arguments, **options)

        return change


@contextmanager
def faulty_disk(healthy: float = 0, number: int | None = FULL) -> Iterator[FaultyDisk]:
    """Let every write of the package meet a FaultyDisk; without faults if `healthy` is infinite."""
    disk = FaultyDisk(healthy, number)
    real, files.os = files.os, disk
    try:
        yield disk
    finally:
        files.os = real


class FaultyFolder:
    """Below `folder` all that Python makes, moves and opens to write fails after the first `healthy` times.

    `changes` are the names of Python's audit events of what was tried so far. Writes to open files do not fail.
    """

    def __init__(self, folder: Path, healthy: float, number: int) -> None:
        self.folder, self.healthy, self.number, self.changes = folder, healthy, number, []

    def meet(self, event: str, arguments: tuple[Any, ...]) -> None:
        place = arguments[1 if event in ("os.link", "os.rename") else 0]
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if reads or not isinstance(place, str | Path) or not Path(place).absolute().is_relative_to(self.folder):
            return
        self.changes.append(event)
        if len(self.changes) > self.healthy:
            raise OSError(self.number, os.strerror(self.number), str(place))


_faulty: FaultyFolder | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _faulty is not None and event in ("open", "os.mkdir", "os.link", "os.rename"):
        _faulty.meet(event, arguments)


sys.addaudithook(_audit)  # which stays for as long as the process


@contextmanager
def faulty_folder(folder: Path, healthy: float = 0, number: int = FULL) -> Iterator[FaultyFolder]:
    """Let a FaultyFolder fail, for code that writes by itself into a folder which it moves when all is there."""
    global _faulty
    _faulty = FaultyFolder(folder, healthy, number)
    try:
        yield _faulty
    finally:
        _faulty = None


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse all that goes beyond `size` bytes of any file that this process writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
