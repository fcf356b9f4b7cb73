"""A run whose disk or workers fail says in one line why and how to go on, and goes on bit for bit."""

import contextlib
import os
import signal

import pytest

from dwtriton.checkpoints.checkpoint import load_checkpoint
from dwtriton.config.load import dump_config
from dwtriton.core.errors import WriteError
from dwtriton.train import __main__ as train_command
from dwtriton.train import run_folder
from dwtriton.train.lock import RunLock
from dwtriton.train.trainer import Trainer
from tests.support.faulty_disk import FULL, faulty_disk


def same_files(one, other):
    names = ("last.pt", "best.pt", "metrics.jsonl", "config.toml", "curves.png", "predictions.png")
    return {name: (one / name).read_bytes() == (other / name).read_bytes() for name in names}


@pytest.fixture
def config(tiny, tmp_path):
    """config(*overrides): the file of a tiny run's config."""

    def write(*overrides):
        (tmp_path / "tiny.toml").write_text(dump_config(tiny(*overrides)))
        return tmp_path / "tiny.toml"

    return write


def test_a_disk_that_fills_up_stops_a_run_that_goes_on_bit_for_bit(finished, config, tmp_path, call, monkeypatch):
    save, saved = run_folder.save_checkpoint, []

    def filling_save(path, checkpoint):
        saved.append(checkpoint.iteration)
        with faulty_disk(healthy=3) if len(saved) == 2 else contextlib.nullcontext():
            save(path, checkpoint)

    monkeypatch.setattr(run_folder, "save_checkpoint", filling_save)
    out, last = tmp_path / "run", load_checkpoint(finished[0] / "last.pt").iteration
    code, _, error = call(train_command, "--cfg", config(), "--out", out)
    assert (code, len(saved)) == (1, 2)
    assert error == (
        f"error: {out}/last.pt cannot be written: No space left on device. {out}/last.pt holds iteration {saved[0]} of "
        f"{last}; mend the cause and continue with: python -m dwtriton.train --resume --out {out}\n"
    )
    assert load_checkpoint(out / "last.pt").iteration == saved[0]
    assert not list(out.glob(".*"))
    assert call(train_command, "--resume", "--out", out)[0] == 0
    assert set(same_files(out, finished[0]).values()) == {True}


def test_a_worker_that_is_killed_is_one_error_after_which_the_run_goes_on(config, tmp_path, call, monkeypatch):
    step = Trainer.step

    def step_after_a_kill(trainer, micro_batches, epoch):
        if trainer.iteration == 2:
            os.kill(trainer.loader._iterator._workers[0].pid, signal.SIGKILL)
            signal.pause()  # PyTorch hears of it by SIGCHLD, and raises wherever the run is
        step(trainer, micro_batches, epoch)

    monkeypatch.setattr(Trainer, "step", step_after_a_kill)
    settings = "data.workers=1", "train.checkpoint_every=2", "schedule.epochs=1"
    code, _, error = call(train_command, "--cfg", config(*settings), "--out", tmp_path / "run")
    assert code == 1
    assert error.startswith("error: DataLoader worker (pid ")
    assert "is killed by signal: Killed; too little memory is the usual reason: lower data.workers" in error
    assert f"{tmp_path}/run/last.pt holds iteration 2 of " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (MemoryError(), "the machine has too little memory: lower data.batch_size or data.workers"),
        (OSError(FULL, "No space left on device"), "No space left on device"),  # of standard output, for instance
        (WriteError("metrics.jsonl cannot be written"), "metrics.jsonl cannot be written"),
    ],
)
def test_failures_before_the_first_checkpoint(failure, cause, finished, config, tmp_path, call, monkeypatch):
    def fit(trainer):
        raise failure

    monkeypatch.setattr(Trainer, "fit", fit)
    code, _, error = call(train_command, "--cfg", config(), "--out", tmp_path / "run")
    assert code == 1
    assert error == f"error: {cause}. there is no {tmp_path}/run/last.pt: no iteration is saved, start again\n"


def test_a_run_folder_that_cannot_be_written_to_is_one_error(finished, config, tmp_path, call):
    with faulty_disk(healthy=0):
        code, _, error = call(train_command, "--cfg", config(), "--out", tmp_path / "run")
    assert (code, error) == (1, f"error: {tmp_path}/run/config.toml cannot be written: No space left on device\n")


def test_a_run_that_lives_is_not_resumed_beside_itself(finished, tmp_path, call, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last.pt").write_bytes((finished[0] / "last.pt").read_bytes())

    def refuse(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    RunLock(tmp_path / "run").release()
    monkeypatch.setattr("dwtriton.train.lock.fcntl.lockf", refuse)
    code, _, error = call(train_command, "--resume", "--out", tmp_path / "run")
    assert code == 2
    assert error.startswith(f"error: {tmp_path}/run is in use by process {os.getpid()} on ")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["last.pt", "run.lock"]
