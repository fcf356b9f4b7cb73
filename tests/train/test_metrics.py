"""`metrics.jsonl`: complete at any moment, written through one open file, cut back by a resume; the speed meter."""

import time

import pytest

from dwtriton.train.metrics import MetricsFile, Speed, read_metrics


def row(iteration, lr=0.1):
    return {"kind": "step", "iteration": iteration, "epoch": 1, "lr": lr, "loss": 1.5}


def test_rows_are_on_disk_at_once_through_a_file_that_stays_open(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for iteration in (1, 2):
        metrics.write(row(iteration))
        assert read_metrics(path) == metrics.rows  # a process killed now would lose nothing
    path.rename(tmp_path / "moved")
    metrics.write(row(3))
    metrics.close()
    assert not path.exists()  # nor was it opened again
    assert [row["iteration"] for row in read_metrics(tmp_path / "moved")] == [1, 2, 3]


def test_a_resumed_run_drops_the_rows_that_it_will_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for iteration in (1, 2, 3):
        metrics.write(row(iteration))
    metrics.close()
    resumed = MetricsFile(path, iteration=2)
    resumed.write(row(3, lr=0.2))
    resumed.close()
    assert [(row["iteration"], row["lr"]) for row in read_metrics(path)] == [(1, 0.1), (2, 0.1), (3, 0.2)]


def test_reading_the_speed_changes_nothing(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 4.0, 4.0])  # created, asked for a batch, got it, read twice
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    class Batch:
        images = range(8)

    speed = Speed(world_size=2)
    next(speed.timed(iter([Batch()])))
    assert speed.read() == speed.read() == (pytest.approx(16 / 4), pytest.approx(2 / 4))
