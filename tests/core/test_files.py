"""Files are written whole and on the disk or not at all, whatever the disk does, and the error names cause and path."""

import errno
import io
import math
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dwtriton.core import files
from dwtriton.core.errors import UserError, WriteError, cause_of_failure
from dwtriton.core.files import AppendedFile, copy_file, keep_file, move_folder, write_file, write_text
from tests.support.faulty_disk import BROKEN, FULL, READ_ONLY, faulty_disk, largest_file

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
WRITERS = {  # libraries that write to a file of ours, each with its own way of missing an error
    "bytes": lambda file: file.write(b"x" * 20_000),
    "torch.save": lambda file: torch.save({"a": torch.zeros(5000), "b": torch.ones(3)}, file),
    "Pillow JPEG": lambda file: Image.fromarray(NOISE).save(file, "JPEG", quality=95),
    "Pillow PNG": lambda file: Image.fromarray(NOISE).save(file, "PNG"),
}


@pytest.mark.parametrize("number", [FULL, BROKEN, READ_ONLY, errno.EDQUOT])
@pytest.mark.parametrize("writer", WRITERS)
def test_wherever_the_disk_fails_the_old_file_stays_or_the_new_one_is_whole(writer, number, tmp_path):
    path = tmp_path / "file.bin"
    with faulty_disk(healthy=math.inf) as disk:
        write_file(path, WRITERS[writer])
    new = path.read_bytes()
    assert {"open", "write", "fsync", "replace"} <= set(disk.calls)
    for healthy in range(len(disk.calls)):
        path.write_bytes(b"old")
        message = f"^{re.escape(str(path))} cannot be written: {re.escape(os.strerror(number))}$"
        with faulty_disk(healthy, number), pytest.raises(WriteError, match=message):
            write_file(path, WRITERS[writer])
        assert path.read_bytes() == (b"old" if healthy <= disk.calls.index("replace") else new)
        assert [found.name for found in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_limit_of_the_system_is_met_like_a_full_disk(writer, tmp_path):
    path = tmp_path / "file.bin"
    with largest_file(3000), pytest.raises(WriteError, match="cannot be written: File too large"):
        write_file(path, WRITERS[writer])
    assert not list(tmp_path.iterdir())
    write_file(path, WRITERS[writer])
    plain = io.BytesIO()
    WRITERS[writer](plain)
    assert path.read_bytes() == plain.getvalue()


def test_an_error_of_the_writer_and_a_kill_leave_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    for error in (KeyError("mine"), KeyboardInterrupt()):

        def fail(file, error=error):
            file.write(b"half")
            raise error

        with pytest.raises(type(error)):
            write_file(path, fail)
        assert path.read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 1


def test_a_check_sees_the_whole_file_before_the_old_one_goes(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def check(written):
        assert (written.read_text(), path.read_text()) == ("new", "old")
        raise UserError("no good")

    with pytest.raises(UserError, match="no good"):
        write_file(path, lambda file: file.write(b"new"), check)
    assert [found.read_text() for found in tmp_path.iterdir()] == ["old"]


def test_what_is_written_is_synced_before_it_is_moved_and_its_folder_afterwards(tmp_path):
    with faulty_disk(healthy=math.inf) as disk:
        write_text(tmp_path / "a", "text")
    assert disk.calls == ["open", "write", "fsync", "replace", "open", "fsync"]
    (tmp_path / "new/deep").mkdir(parents=True)
    for name in ("new/a", "new/deep/b"):
        (tmp_path / name).write_text("")
    with faulty_disk(healthy=math.inf) as disk:
        move_folder(tmp_path / "new", tmp_path / "place")
    assert disk.calls == ["open", "fsync"] * 4 + ["replace", "open", "fsync"]  # two files and their two folders
    assert (tmp_path / "place/deep/b").exists()


def test_a_disk_that_cannot_sync_folders_is_written_to(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files, "_sync", refuse)
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


def test_long_names_and_folders_that_vanish(tmp_path):
    name = "n" * 251 + ".txt"
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
    with pytest.raises(WriteError, match="n cannot be written: File name too long"):
        write_text(tmp_path / ("n" * 256), "text")
    with pytest.raises(WriteError, match=f"gone/a cannot be written: the folder {tmp_path}/gone is gone"):
        write_text(tmp_path / "gone/a", "text")


@pytest.mark.parametrize("healthy", [0, 1, 2])
def test_lines_are_appended_whole_or_the_error_names_the_file(healthy, tmp_path):
    lines = AppendedFile(tmp_path / "lines")
    lines.write_line("first")
    with faulty_disk(healthy) as disk:
        for work in (lambda: lines.write_line("ö"), lines.sync):
            failing = len(disk.calls) >= healthy
            if failing:
                with pytest.raises(WriteError, match="lines cannot be written: No space left on device"):
                    work()
            else:
                work()
    lines.close()
    assert (tmp_path / "lines").read_text() == ("first\n" if healthy == 0 else "first\nö\n")
    AppendedFile(tmp_path / "lines").write_line("last")
    assert (tmp_path / "lines").read_text().endswith("\nlast\n")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_kept_when_another_takes_its_place(links, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(files.os, "link", refuse)
    last, previous = tmp_path / "last", tmp_path / "previous"
    for text in ("one", "two", "three"):
        write_text(last, text)
        keep_file(last, previous)
        keep_file(last, previous)  # which is the same file already
    assert (last.stat().st_ino == previous.stat().st_ino) == links
    write_text(last, "four")
    assert (last.read_text(), previous.read_text()) == ("four", "three")
    copy_file(last, tmp_path / "copy")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["copy", "last", "previous"]


def test_causes_that_are_not_the_programs_fault_are_one_line():
    assert cause_of_failure(OSError(FULL, "No space left on device")) == "No space left on device"
    assert cause_of_failure(OSError(FULL, "No space left on device", "a/b")) == "a/b: No space left on device"
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nMore")
    assert cause_of_failure(killed).startswith(
        "DataLoader worker (pid 7) is killed by signal: Killed; too little memory"
    )
    allocator = RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory")
    for error in (allocator, MemoryError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback")):
        assert cause_of_failure(error) == "the machine has too little memory: lower data.batch_size or data.workers"
    assert cause_of_failure(RuntimeError("a mistake")) is None
