"""The tutorial, docs/your-data.md, done as it is written: its files are written, its commands run one after another."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from dwtriton.data import __main__ as data_command
from dwtriton.data.prepare import prepare_data
from dwtriton.train import __main__ as train_command

PAGE = (Path(__file__).parents[2] / "docs" / "your-data.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
FILES = {name: code for _, code in BLOCKS for name in re.findall(r"\A# (\S+)\n", code)}


def draw_yolo(root, classes, images):
    """Images of rectangles and ellipses, 128x96 or 96x128, and their labels."""
    rng = np.random.default_rng(0)
    for split, count in images.items():
        for part in ("images", "labels"):
            (root / part / split).mkdir(parents=True)
        for number in range(1, count + 1):
            size = np.array([(128, 96), (96, 128)][number % 2])
            picture = Image.new("RGB", tuple(size.tolist()), tuple(rng.integers(30, 110, 3).tolist()))
            draw, lines = ImageDraw.Draw(picture), []
            for _ in range(2):
                label = int(rng.integers(classes))
                sides = rng.integers(20, 60, 2)
                corner = (rng.random(2) * (size - sides)).astype(int)
                shape = (draw.rectangle, draw.ellipse)[label]
                shape(
                    (*corner.tolist(), *(corner + sides - 1).tolist()), fill=tuple(rng.integers(150, 256, 3).tolist())
                )
                lines.append(
                    f"{label} " + " ".join(f"{v:.6f}" for v in [*((corner + sides / 2) / size), *(sides / size)])
                )
            picture.save(root / "images" / split / f"{number:04}.jpg")
            (root / "labels" / split / f"{number:04}.txt").write_text("\n".join(lines))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the files of the page and the images that it speaks of."""
    monkeypatch.chdir(tmp_path)
    Path("my-yolo").mkdir()
    for name, content in FILES.items():
        Path(name).write_text(content)
    draw_yolo(Path("my-yolo"), len(yaml.safe_load(FILES["my-yolo/data.yaml"])["names"]), {"train": 24, "val": 8})
    return tmp_path


def test_the_tutorial_works_as_written(folder, call):
    torch.manual_seed(0)
    assert [shlex.split(command)[2].removeprefix("dwtriton.") for command in COMMANDS] == [
        *("data", "data", "train", "evaluate", "predict", "explain", "train")
    ]
    outputs = []
    for command in COMMANDS:
        program, _, module, *arguments = shlex.split(command)
        assert program == "python"
        home = import_module(module)
        home = home if hasattr(home, "main") else import_module(f"{module}.__main__")
        code, printed, error = call(home, *arguments)
        assert code == 0, f"{command}\n{printed}\n{error}"
        outputs.append(printed)
    named = re.findall(r"`((?:my-data|data-check|runs/dry|found)/[\w./-]+)`", PAGE)
    assert len(named) > 10
    for name in named:
        assert Path(name).exists(), name
    assert "no problems found" in outputs[1]
    assert outputs[1].splitlines()[-1] == (
        "train on it: python -m dwtriton.train --cfg small --data my-data --set data.batch_size=4 "
        "--set schedule.epochs=100 --set head.num_classes=2"
    )
    assert "Average Precision" in outputs[2]
    assert len(list(Path("found").glob("*.jpg"))) == 8
    assert_weighed_detections_are_a_data_set()


def assert_weighed_detections_are_a_data_set():
    """After the page's script, as its command reads them."""
    exec(compile(FILES["weigh.py"], "weigh.py", "exec"), {})
    (command,) = (code for _, code in BLOCKS if "train_annotations=pseudo.json" in code)
    words = shlex.split(command.replace("mine.toml", "dry.toml").replace("\\\n", ""))[3:]
    train_set, _ = prepare_data(train_command.read_config(train_command.build_parser().parse_args(words)))
    weights = torch.cat([train_set[index].target["weights"] for index in range(len(train_set))])
    scores = [box["score"] for box in json.loads(Path("found/detections.json").read_text())["annotations"]]
    assert len(scores) > 0
    assert weights.tolist() == pytest.approx(scores)


def test_the_error_on_the_page_is_the_one_that_is_printed(folder, call):
    (shown,) = (code for _, code in BLOCKS if code.startswith("error: "))
    for file, line, text in (("train/0003", 2, "7 .5 .5 .1 .1"), ("val/0001", 1, "0 212 90 64 48")):
        labels = Path("my-yolo", "labels", f"{file}.txt")
        lines = labels.read_text().splitlines()
        lines[line - 1] = text
        labels.write_text("\n".join(lines))
    code, _, error = call(data_command, *shlex.split(COMMANDS[0])[3:])
    assert (code, error) == (2, shown)
    assert not Path("my-data").exists()
