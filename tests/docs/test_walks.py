"""From an unpacked export to a detector by commands that the tool itself prints: `check`, then whatever it says."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from dwtriton.data import __main__ as data_command
from dwtriton.data.loaders import train_loader
from dwtriton.data.prepare import prepare_data
from dwtriton.train import __main__ as train_command
from tests.support.exports import EXPORTS, TRAIN, VAL, aerial_voc

LEADS = (
    "split it",
    "split them off",
    "look at it",
    "cut the images",
    "train on it",
    "look closer",
)  # before a command, the first wins
MAX_COMMANDS = 7
STEPS = {  # actions until training, by export
    "roboflow": ["check"],
    "cvat": ["check", "split", "check"],
    "label-studio": ["check", "convert", "split", "check"],
    "labelimg": ["check", "convert", "split", "check"],
    "fiftyone": ["check"],
    "aerial": ["check", "convert", "split", "check", "tile", "check"],
}


def next_command(text):
    """The words of the command to run after a command that printed `text`."""
    printed = dict(re.findall(r"^([a-z ]+): (python -m dwtriton\..*)$", text, re.MULTILINE))
    lead = next((lead for lead in LEADS if lead in printed), None)
    command = printed[lead] if lead else re.search(r"python -m dwtriton\.data convert [^\n;]*", text)[0].rstrip(".")
    return shlex.split(command)


def run(words, call):
    """What a command prints, errors included."""
    module = import_module(words[2])
    _, printed, error = call(module if hasattr(module, "main") else import_module(f"{words[2]}.__main__"), *words[3:])
    assert "Traceback" not in error
    return printed + error


@pytest.fixture
def walk(tmp_path, monkeypatch, call):
    """Walk from an export to its training: (the words of that command, the actions before it)."""
    monkeypatch.chdir(tmp_path)

    def to_training(name):
        (EXPORTS | {"aerial": aerial_voc})[name](Path(name))
        words, actions = ["python", "-m", "dwtriton.data", "check", name], []
        while words[2] == "dwtriton.data":
            actions.append(words[3])
            assert len(actions) < MAX_COMMANDS
            words = next_command(run(words, call))
        return words, actions

    return to_training


@pytest.mark.parametrize("name", EXPORTS)
def test_printed_commands_lead_to_the_data_of_a_run(name, walk, monkeypatch):
    monkeypatch.setattr(data_command, "draw_sheet", lambda found: Figure(figsize=(1, 1)))
    words, actions = walk(name)
    assert actions == STEPS[name]
    cfg = train_command.read_config(train_command.build_parser().parse_args(words[3:]))
    train, val = prepare_data(cfg)
    assert len(train) + len(val) == TRAIN + VAL
    assert train.class_names == val.class_names == ["box", "disc"]
    batch = next(iter(train_loader(train, cfg)))
    assert len(batch) == cfg.data.batch_size


def test_small_objects_of_large_images_are_cut_out_by_printed_commands(walk, monkeypatch):
    """At 160 pixels the objects of 24 would be 5 pixels wide and high."""
    monkeypatch.setattr(data_command, "draw_sheet", lambda found: Figure(figsize=(1, 1)))
    words, actions = walk("aerial")
    assert actions == STEPS["aerial"]
    cfg = train_command.read_config(train_command.build_parser().parse_args(words[3:]))
    train, _ = prepare_data(cfg)
    sample = train[0]
    widths = sample.target["boxes"][:, 2] - sample.target["boxes"][:, 0]
    assert widths.median() > 16


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXPORTS, "aerial"])
def test_printed_commands_lead_to_a_detector_that_finds_something(name, walk, call):
    """With a sixth of the epochs, to save time."""
    words, _ = walk(name)
    printed = run([*words, "--set", "schedule.epochs=8", "--set", "train.evaluate_every=8"], call)
    run(next_command(printed), call)
    (metrics,) = Path("runs").glob("*/evaluation/metrics.json")
    assert json.loads(metrics.read_text())["AP"] > 0.05
