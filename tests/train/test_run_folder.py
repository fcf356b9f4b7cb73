"""The folder of a run: one run at a time, nothing lost wherever the disk or the process ends, and all damage named."""

import itertools
import math
import os
import re
import subprocess
import sys

import pytest

from dwtriton.checkpoints.checkpoint import load_checkpoint
from dwtriton.core.errors import UserError, WriteError
from dwtriton.train.lock import LOCK_FILE, RunLock
from dwtriton.train.metrics import read_metrics
from dwtriton.train.resume import load_last, state_of_run
from dwtriton.train.run_folder import RunFolder, new_folder, written_at
from tests.support import toy_run
from tests.support.faulty_disk import BROKEN, FULL, READ_ONLY, faulty_disk, largest_file
from tests.support.generated_cases import THOROUGH
from tests.support.toy_run import PER_EPOCH


@pytest.fixture
def cfg(small_config):
    return small_config(train={"keep_every": 1})


@pytest.fixture
def train(cfg):
    """train(path, to): a run from its last checkpoint to an iteration."""
    return lambda path, to: toy_run.train(path, cfg, to)


def content(path):
    """What a run folder says to those who read it."""
    checkpoints = {file.name: load_checkpoint(file).iteration for file in sorted(path.glob("*.pt"))}
    return checkpoints, read_metrics(path / "metrics.jsonl"), (path / "config.toml").read_text()


@pytest.mark.parametrize(("number", "first"), [(FULL, 0), (BROKEN, 1), (READ_ONLY, 2)])
def test_wherever_the_disk_fails_the_run_goes_on_from_its_last_checkpoint(number, first, train, tmp_path):
    """At each third of the calls; the other thirds have the other faults."""
    with faulty_disk(healthy=math.inf) as disk:
        train(tmp_path / "whole", 3)
    expected = content(tmp_path / "whole")
    assert expected[0] == {"best.pt": 2, "epoch-001.pt": 2, "last.pt": 3, "previous.pt": 2}
    reached = []
    for healthy in range(len(disk.calls))[first :: 1 if THOROUGH else 3]:
        path = tmp_path / f"run-{healthy}"
        with faulty_disk(healthy, number), pytest.raises(WriteError, match=rf"{path}/\S+ cannot be written: "):
            train(path, 3)
        if (path / "last.pt").exists():
            reached.append(load_checkpoint(path / "last.pt").iteration)
        with faulty_disk(healthy=math.inf):
            train(path, 3)
        assert content(path) == expected
        assert not list(path.glob(".*"))
    assert reached == sorted(reached)
    assert {1, 2} <= set(reached) <= {1, 2, 3}


def test_a_kept_checkpoint_that_a_kill_prevented_is_made_by_the_next_run(train, tmp_path):
    train(tmp_path, 4)
    (tmp_path / "epoch-002.pt").unlink()
    train(tmp_path, 4)
    assert load_checkpoint(tmp_path / "epoch-002.pt").iteration == 4


def test_damaged_lines_of_metrics_are_left_out_and_counted(cfg, train, tmp_path):
    train(tmp_path, 4)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    damages = [
        b"\0" * 4096,
        b"\xff\xfe{}",
        b"[" * 100_000,
        b"[1, 2]",
        b'{"kind": "step"}',
        b'{"kind": ["step"]}',
        b"NaN",
    ]
    for damage in damages:
        path.write_bytes(b"".join([lines[0], damage, b"\n", *lines[2:], b'{"kind": "st']))
        folder = RunFolder(tmp_path, cfg, 3, PER_EPOCH, written_at(tmp_path / "last.pt"))
        folder.close()
        assert folder.notes == [f"1 lines of {path} cannot be read and were left out"]
        assert [row["iteration"] for row in folder.metrics.rows] == [1, 2, 3]  # 2: its evaluation
        assert path.read_bytes() == b"".join([lines[0], *lines[2:4]])
    for whole in (b"", b"\0" * 100):  # all of it is lost; an end without a line break is taken for a row cut off
        path.write_bytes(whole)
        folder = RunFolder(tmp_path, cfg, 3, PER_EPOCH, written_at(tmp_path / "last.pt"))
        folder.close()
        assert (folder.metrics.rows, folder.notes) == ([], [])


def test_a_damaged_last_checkpoint_is_refused_and_the_latest_whole_one_offered(train, tmp_path):
    train(tmp_path, 4)
    last = tmp_path / "last.pt"
    damaged = bytearray(last.read_bytes())
    damaged[damaged.index(load_checkpoint(last).model["weight"].numpy().tobytes()) + 200] ^= 1
    (tmp_path / "best.pt").write_bytes(damaged)  # of the same iteration, as is epoch-002.pt
    (tmp_path / "epoch-002.pt").unlink()
    last.write_bytes(damaged)
    offer = re.escape(f"{tmp_path}/previous.pt, of iteration 3, is whole: to go on from it, cp ")
    with pytest.raises(UserError, match=rf"^checkpoint {last} .*checksum.*\. {offer}\S+ {last} and --resume again$"):
        load_last(tmp_path)
    last.unlink()
    with pytest.raises(UserError, match=rf"last\.pt does not exist\. {offer}"):
        load_last(tmp_path)
    for name in ("previous.pt", "epoch-001.pt"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"last\.pt does not exist$"):
        load_last(tmp_path)


def test_a_run_that_failed_says_where_it_stands(tmp_path, train):
    out = tmp_path / "my run"
    assert state_of_run(out, 0, 9) == f"there is no {out}/last.pt: no iteration is saved, start again"
    assert state_of_run(out, 3, 9) == f"there is no {out}/last.pt: bring it back"
    train(out, 1)
    command = f"python -m dwtriton.train --resume --out '{out}'"
    assert (
        state_of_run(out, 1, 9) == f"{out}/last.pt holds iteration 1 of 9; mend the cause and continue with: {command}"
    )


HOLD = """
import os, sys, time
from pathlib import Path
from dwtriton.train.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
if os.fork() == 0:  # as a worker, which lives on for a while
    time.sleep(20)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


def test_the_folder_of_a_living_run_is_refused_and_a_killed_one_leaves_it_free(cfg, tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        holder = f"process {other.pid} on {os.uname().nodename}"
        with pytest.raises(UserError, match=f"^{tmp_path} is in use by {holder}: wait for it to end, or choose "):
            RunFolder(tmp_path, cfg, 0, PER_EPOCH, None)
        assert [file.name for file in tmp_path.iterdir()] == [LOCK_FILE]
        other.kill()
        other.wait()
        RunFolder(tmp_path, cfg, 0, PER_EPOCH, None).close()  # though the worker lives
        assert (tmp_path / LOCK_FILE).read_text() == f"process {os.getpid()} on {os.uname().nodename}"


def test_a_disk_without_locks_is_written_to(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("dwtriton.train.lock.fcntl.lockf", refuse)
    RunLock(tmp_path).release()


def test_a_run_that_another_one_has_overtaken_begins_nothing(cfg, train, tmp_path):
    """Both looked at the folder before one of them locked it."""
    train(tmp_path, 1)
    before = sorted(tmp_path.iterdir())
    for seen in (None, 1):
        with pytest.raises(
            UserError, match=f"another run has just written to {tmp_path}: choose another --out, or add"
        ):
            RunFolder(tmp_path, cfg, 0, PER_EPOCH, seen)
    assert sorted(tmp_path.iterdir()) == before


def test_default_folders_never_collide_and_unused_ones_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder("a") as first, new_folder("a") as second, new_folder("a") as third:
        assert len({first, second, third}) == 3
        assert all(path.is_dir() for path in (first, second, third))
        (second / "last.pt").touch()
    assert [str(path) for path in tmp_path.rglob("*")] == [
        f"{tmp_path}/{path}" for path in ("runs", second, second / "last.pt")
    ]
    (second / "last.pt").unlink()
    second.rmdir()
    with new_folder("a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_event_files_on_a_full_disk_are_one_error_too(small_config, tmp_path, capfd):
    cfg = small_config(train={"tensorboard": True})
    folder = RunFolder(tmp_path, cfg, 0, PER_EPOCH, None)

    def fill():
        for iteration in itertools.count(1):
            folder._to_events(lambda events, n=iteration: events.add_scalar("a" * 100, n, n))
            folder._to_events(lambda events: events.flush())

    with largest_file(4000), pytest.raises(WriteError, match=rf"^{tmp_path}/events\S+ cannot be written: File too "):
        fill()
    with pytest.raises(WriteError):
        folder.close()
    assert capfd.readouterr().err == ""
