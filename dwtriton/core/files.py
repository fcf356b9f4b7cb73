"""Writing files: whole and on the disk or not at all, with clear errors for what exists or cannot be made.

Every file that the package leaves comes from `write_file`, from `AppendedFile`, or lies in a folder that `move_folder`
put in its place.
"""

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dwtriton.core.errors import UserError, WriteError

MAX_NAME = 255  # bytes in the name of a file
COPIED_AT_ONCE = 2**20  # bytes
CANNOT_SYNC_FOLDERS = (errno.EINVAL, errno.EACCES)  # of some network disks; of folders that may be written, not read


class CheckedFile(io.BufferedWriter):
    """A new file, open for writing, that never raises: it keeps the disk's first error and swallows what follows.

    PyTorch's archives are written by C++, where an error of a Python file ends the process. The file has no descriptor
    that others could write to unchecked, as image libraries do.
    """

    def __init__(self, path: Path) -> None:
        self._disk = _Disk(path)
        super().__init__(self._disk)

    def check(self) -> None:
        """Raise the disk's error, if there was one: for writers that would go on for long."""
        if self._disk.error is not None:
            raise self._disk.error

    def sync(self) -> None:
        """Have all of it on the disk. Raises OSError."""
        self.flush()
        self.check()
        os.fsync(self._disk.descriptor)


class _Disk(io.RawIOBase):
    """What is below the buffer of a CheckedFile: every byte goes through `write`."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:  # bytes of any kind, for which Python 3.11 has no type
        if self.error is None:
            try:
                return os.write(self.descriptor, data)
            except OSError as error:
                self.error = error
        size = memoryview(data).nbytes
        os.lseek(self.descriptor, size, os.SEEK_CUR)
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self.descriptor, offset, whence)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self.descriptor)


def write_file(
    path: Path, write: Callable[[CheckedFile], object], check: Callable[[Path], object] | None = None
) -> None:
    """Let `write` fill a file beside `path`, have it on the disk, let `check` look at it, and move it to `path`.

    After an error, a kill or a loss of power `path` is what it was before. Raises WriteError where the disk refuses.
    """
    temporary = path.with_name(fitting_name(f".{path.stem}", f".partial{path.suffix}"))
    try:
        with explain_writes(path):
            with CheckedFile(temporary) as file:
                try:
                    write(file)
                except Exception:
                    file.check()  # what the disk said is the cause of whatever came of it
                    raise
                file.sync()
            if check is not None:
                check(temporary)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file as `write_file` does; names of files that are no UTF-8 keep their bytes."""
    write_file(path, lambda file: file.write(text.encode("utf-8", errors="surrogateescape")))


def fitting_name(stem: str, suffix: str) -> str:
    """Return the name `stem + suffix`, with the stem cut where a file system would refuse a name of this length."""
    while stem and len(os.fsencode(stem + suffix)) > MAX_NAME:
        stem = stem[:-1]
    return stem + suffix


def keep_file(path: Path, kept: Path) -> None:
    """Have what is at `path` at `kept`, too, for when `path` is replaced: a link where the disk allows, else a copy."""
    temporary = kept.with_name(fitting_name(f".{kept.stem}", f".partial{kept.suffix}"))
    try:
        with explain_writes(kept):
            temporary.unlink(missing_ok=True)
            os.link(path, temporary)
            os.replace(temporary, kept)
    except WriteError:
        copy_file(path, kept)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def copy_file(path: Path, copy: Path) -> None:
    """Copy a file as `write_file` writes one."""
    with explain_writes(copy), path.open("rb") as source:
        write_file(copy, lambda file: shutil.copyfileobj(source, file, COPIED_AT_ONCE))


def move_folder(folder: Path, place: Path) -> None:
    """Move a folder of new files to `place`, absent or empty, once all of it is on the disk. Raises OSError."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync_folder(Path(parent))
    os.replace(folder, place)
    _sync_folder(place.parent)


class AppendedFile:
    """A text file that grows by lines. After a kill the last one may be cut off; those before `sync` are on the disk.

    All methods raise WriteError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explain_writes(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write_line(self, line: str) -> None:
        data = memoryview(f"{line}\n".encode())
        with explain_writes(self.path):
            while data:  # a disk that fills up takes a part
                data = data[os.write(self._descriptor, data) :]

    def sync(self) -> None:
        with explain_writes(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


@contextmanager
def explain_writes(path: Path) -> Iterator[None]:
    """Turn an OSError, of writing `path`, into a WriteError that names cause and path."""
    try:
        yield
    except OSError as error:
        vanished = error.errno == errno.ENOENT and not path.parent.is_dir()
        cause = f"the folder {path.parent} is gone" if vanished else error.strerror or str(error)
        raise WriteError(f"{path} cannot be written: {cause}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk, where that can be."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in CANNOT_SYNC_FOLDERS:
            raise


def make_folder(path: Path) -> None:
    """Create a folder and its parents if absent. Raises UserError if it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path} cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"the folder {path} cannot be written to")


def check_absent(paths: Iterable[Path], force: bool) -> None:
    """Raise UserError if a command would replace files without `force` (its option --force)."""
    held = [str(path) for path in paths if path.exists()]
    if held and not force:
        exists, it = ("exists", "it") if len(held) == 1 else ("exist", "them")
        raise UserError(f"{', '.join(held)} already {exists}: add --force to replace {it}, or choose another --out")


def check_new_file(path: Path, force: bool) -> None:
    """Raise UserError if `path`, given as --out, exists and `force` is not set, or if its folder cannot be made."""
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file")
    check_absent([path], force)
    make_folder(path.parent)
