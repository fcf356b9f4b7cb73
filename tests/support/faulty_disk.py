"""Disks that fail: `os` as `dwtriton.core.files` sees it, and a limit of the system on the size of files."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse all that goes beyond `size` bytes of any file that this process writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
