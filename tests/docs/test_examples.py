"""The scripts in examples/ run, with small settings, and show what they say."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def example(monkeypatch, capsys):
    """Run a script of examples/ as the main program; returns what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_training_on_shapes_draws_the_weights(example, tmp_path):
    images = "data.shapes={train_images=8, val_images=4, seed=0}"
    shorter = ["schedule.epochs=1", "schedule.warmup_iterations=1", images]
    settings = [part for key in [*TINY, *shorter] for part in ("--set", key)]
    printed = example("train_on_shapes.py", "--out", tmp_path, *settings)
    assert "Average Precision" in printed
    sums = [float(value) for value in re.findall(r"points weigh over 0.01 as positives, all ([\d.]+)", printed)]
    assert sums
    assert all(value > 0 for value in sums)
    assert Image.open(tmp_path / "weights.png").width > 300


def test_the_loss_trains_the_fcos_of_torchvision(example):
    printed = example("loss_in_torchvision_fcos.py", "--steps", 2, "--side", 64)
    assert re.search(r"step 2: loss_cls_pos \d+\.\d+, loss_loc \d+\.\d+, loss_cls_neg \d+\.\d+", printed)
    assert printed.count(": found ") == 3


def test_the_module_of_the_fcos_is_that_of_the_page():
    source = (ROOT / "examples" / "loss_in_torchvision_fcos.py").read_text()
    module = source[source.index("STRIDES =") : source.index("\n\n\ndef draw_batch")]
    assert module in (ROOT / "docs" / "use-the-loss.md").read_text()


def test_detections_are_printed_and_drawn(example, finished, shapes_root, tmp_path):
    image = sorted(shapes_root.glob("val*/*.jpg"))[0]
    printed = example("detect_from_python.py", finished[0] / "last.pt", image, "--score", 0.001, "--out", tmp_path)
    count = int(re.search(rf"{image.name}: (\d+) objects", printed)[1])
    assert count > 0
    assert len(re.findall(r"^  \w+ 0\.\d\d at \(-?\d+, -?\d+, -?\d+, -?\d+\)$", printed, re.MULTILINE)) == count
    assert Image.open(tmp_path / f"{image.stem}.png").size == Image.open(image).size


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_example_is_named_in_the_readme(script):
    assert f"examples/{script.name}" in (ROOT / "README.md").read_text()
