"""The benchmark of the loader: complete results, of loaders that make the same images."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    loader,
    loader_clock,
    plain_loader,
)
from benchmarks.cases import Size
from benchmarks.recording import RESULTS
from dwtriton.core.errors import UserError
from dwtriton.data.images import resized_size

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU = torch.device("cpu")
TINY = Size(height=96, width=128, classes=4)


def test_loaders_are_measured_completely(tmp_path, capsys):
    arguments = ["--images", "4", "--batch", "2", "--workers", "0", "1", "--rounds", "1"]
    loader.main([*arguments, "--out", str(tmp_path / "results" / "loader.json")])
    results = json.loads((tmp_path / "results" / "loader.json").read_text())
    assert results["case"].keys() == {"images", "batch", "file_kb"}
    assert 120 < results["case"]["file_kb"] < 200  # COCO has 160
    assert list(results["steps_ms"])[:4] == ["decode", "resize", "flip", "normalise"]
    assert [row["workers"] for row in results["loaders"]] == [0, 1]
    measured = [*results["steps_ms"].values()]
    for row in results["loaders"]:
        for name in ("dwtriton", "torchvision"):
            assert row[name].keys() == {"images_s", "images_s_core", "main_ms", "busy_threads"}
            measured.append(row[name])
    assert all(value > 0 for values in measured for value in values.values())
    assert loader.markdown(results) in capsys.readouterr().out


def test_loaders_that_make_different_images_are_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_loader, "resized_size", lambda *sides: resized_size(*sides)[::-1])
    with pytest.raises(UserError, match="different images"):
        loader.main(["--images", "4", "--batch", "2", "--out", str(tmp_path / "loader.json")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "share"), [(0.0, 0.0), (0.01, 0.0), (0.03, 2 / 3)])
def test_the_clock_tells_how_long_a_gpu_would_wait(seconds, share, monkeypatch):
    """For a GPU that takes a batch of two images in 10 ms, in a time that only sleep and the loader let pass."""
    now = [0.0]

    class Loader:
        """One batch is always begun; it is ready so many seconds after the last was taken."""

        def __iter__(self):
            ready = now[0] + seconds
            for _ in range(5):
                now[0] = max(now[0], ready)
                ready = now[0] + seconds
                yield

    def sleep(duration):
        now[0] += duration

    monkeypatch.setattr(loader_clock, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep))
    assert loader_clock.share_of_waiting(Loader(), 2, 200, 1) == pytest.approx(share, abs=1e-9)


def test_the_clock_runs_on_the_loader_of_training(capsys):
    code = loader_clock.main(["--images", "64", "--seconds", "0.1", "--pace", "5000", "--workers", "0"])
    assert (code, "the loader does not keep up" in capsys.readouterr().out) == (1, True)


def test_the_page_on_loading_shows_the_recorded_results():
    results = json.loads((RESULTS / "loader" / "cpu.json").read_text())
    assert loader.markdown(results) in (Path(__file__).parents[2] / "docs" / "data-loading.md").read_text()
