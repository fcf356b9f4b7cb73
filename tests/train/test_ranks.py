"""Jobs of two processes, as torchrun starts them, on CPUs: what one process gives, and one clear end when one fails."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dwtriton.config import dump_config
from dwtriton.train.checkpoint import load_checkpoint
from dwtriton.train.reporting import read_metrics

JOB = [str(Path(__file__).with_name("rank_job.py"))]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def start(tiny, tmp_path):
    """Start the training command: start(scenario, *overrides, torchrun=[...], out=...) -> Popen with all output."""

    def start(scenario: str, *overrides: str, torchrun=TORCHRUN, out="run") -> subprocess.Popen:
        file = tmp_path / f"{out}.toml"
        file.write_text(dump_config(tiny(*overrides)))
        command = [sys.executable, *torchrun, *JOB, scenario, "--cfg", str(file), "--out", str(tmp_path / out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def finish(process: subprocess.Popen) -> str:
    """Everything it printed, once it has ended."""
    return process.communicate(timeout=240)[0]


def test_two_ranks_one_of_which_dies_and_is_restarted_give_what_one_process_gives(start, tmp_path):
    """In float64, where nothing but the number of processes can make a difference: losses, weights, momenta, AP."""
    settings = [
        "backbone.frozen_statistics=true",  # batch norms that train see the images of their own process
        "head.refine=true",
        "schedule.epochs=1",
        "train.checkpoint_every=3",
        "train.ema_decay=0.9",
        "optimizer.clip_norm=5.0",
    ]
    alone = start("in_float64", *settings, torchrun=[], out="alone")
    finish(alone)
    job = start("rank_1_dies_once", *settings, torchrun=[*TORCHRUN, "--max-restarts", "1"])
    printed = finish(job)
    assert (alone.returncode, job.returncode) == (0, 0), printed
    assert "rank 0 lost contact with another rank after iteration 5" in printed
    assert f"from {tmp_path / 'run' / 'last.pt'}" in printed  # of iteration 3
    assert "3 of them done" in printed

    rows, ours = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("alone", "run"))
    assert len(rows) == len(ours) > 6
    for expected, row in zip(rows, ours):
        assert row.pop("kind") == expected.pop("kind")
        class_ap = row.pop("class_ap", {})
        assert class_ap == pytest.approx(expected.pop("class_ap", {}), abs=1e-9)
        assert row == pytest.approx(expected, rel=1e-9, abs=1e-9)
    whole, shared = (load_checkpoint(tmp_path / name / "last.pt") for name in ("alone", "run"))
    assert shared.iteration == whole.iteration
    assert len(whole.optimizer["state"]) > 60
    for field in ("model", "ema", "optimizer"):
        torch.testing.assert_close(getattr(shared, field), getattr(whole, field), rtol=1e-9, atol=1e-9)


def test_two_ranks_evaluate_every_image_once(finished, tmp_path):
    command = ["-m", "dwtriton.evaluate", "--weights", str(finished[0] / "last.pt"), "--out", str(tmp_path / "shared")]
    done = subprocess.run([sys.executable, *TORCHRUN, *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 1
    metrics = json.loads((tmp_path / "shared" / "metrics.json").read_text())
    alone = read_metrics(finished[0] / "metrics.jsonl")[-1]  # of one process
    assert metrics == {key: value for key, value in alone.items() if key not in ("kind", "iteration", "epoch")}
    results = json.loads((tmp_path / "shared" / "detections.json").read_text())
    assert len({result["image_id"] for result in results}) == 8


def test_ranks_that_disagree_end_with_one_error_that_names_the_key(start, tmp_path):
    job = start("rank_1_has_another_rate")
    printed = finish(job)
    assert job.returncode != 0
    assert printed.count("error: ") == 1
    assert "error: ranks 0 and 1 disagree: optimizer.lr is 0.003 and 0.5." in printed
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_shared_out_is_one_error_before_anything_is_written(start, tmp_path):
    job = start("slow_steps", "data.batch_size=5")
    printed = finish(job)
    assert job.returncode != 0
    assert printed.count("error: ") == 1
    assert "data.batch_size = 5" in printed
    assert "does not divide into 2 processes x train.accumulate = 1" in printed
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_on_another_rank_ends_the_job_and_names_its_images(start, tmp_path):
    job = start("rank_1_sees_nan")
    printed = finish(job)
    assert job.returncode != 0
    assert "at iteration 3, epoch 1" in printed
    for image_id in (tmp_path / "run" / "poisoned").read_text().split():
        assert f"{image_id} (" in printed


def test_sigterm_to_torchrun_saves_the_run_at_one_iteration(start, tmp_path):
    job = start("slow_steps", "schedule.epochs=500", "data.workers=1")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and len(read_metrics(metrics)) > 2):
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    printed = finish(job)
    iteration = load_checkpoint(tmp_path / "run" / "last.pt").iteration
    assert f"stopped at iteration {iteration}; go on:" in printed
    assert [row["iteration"] for row in read_metrics(metrics)] == list(range(1, iteration + 1))
