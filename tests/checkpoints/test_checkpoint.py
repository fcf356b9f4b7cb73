"""Checkpoints of every format keep loading; one of a newer format or of another run is refused in one line.

data/format1.pt.xz was written by commit 15a3814: a tiny run on `shapes` with an EMA, loss.loc=0.5 and loss.cls_pos=1.5,
whose tensors of floats are all 0.01. data/format1.toml is the config.toml of its run folder.
"""

import lzma
import re
from pathlib import Path

import pytest
import torch

from dwtriton.checkpoints.checkpoint import (
    FORMAT,
    check_continues,
    load_checkpoint,
    save_checkpoint,
    start_from,
    upgrade,
)
from dwtriton.config.load import load_config, override_config
from dwtriton.config.renames import RENAMED
from dwtriton.core.errors import UserError
from dwtriton.evaluate import __main__ as evaluate_command
from dwtriton.model.detector import build_detector
from dwtriton.predict import __main__ as predict_command
from dwtriton.train import __main__ as train_command

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def format1(tmp_path_factory):
    """The file of format 1."""
    path = tmp_path_factory.mktemp("format1") / "last.pt"
    path.write_bytes(lzma.decompress((DATA / "format1.pt.xz").read_bytes()))
    return path


@pytest.fixture
def state(finished):
    """The content of a file of the current format."""
    return torch.load(finished[0] / "last.pt", weights_only=True)


def test_a_file_of_format_1_has_its_values_under_the_new_keys(format1, tmp_path):
    assert torch.load(format1, weights_only=True)["format"] == 1
    checkpoint = load_checkpoint(format1)
    loss, inference = checkpoint.config.loss, checkpoint.config.inference
    assert (loss.weight_cls_pos, loss.weight_loc, loss.weight_cls_neg) == (1.5, 0.5, 1.0)
    assert inference.model_dump() == {
        "short_side": 64,
        "long_side": 96,
        "score_threshold": 0.001,
        "candidates_per_level": 1000,
        "nms_iou": 0.6,
        "max_detections": 100,
        "compile": "off",
    }
    assert (checkpoint.config.data.long_side, checkpoint.config.train.ema_decay, checkpoint.iteration) == (96, 0.9, 7)
    assert len(checkpoint.class_names) == len(checkpoint.category_ids) == 8
    assert checkpoint.weights is checkpoint.ema
    assert checkpoint.model["head.class_conv.weight"].unique().tolist() == [pytest.approx(0.01)]

    save_checkpoint(tmp_path / "new.pt", checkpoint)
    assert torch.load(tmp_path / "new.pt", weights_only=True)["format"] == FORMAT == 2
    again = load_checkpoint(tmp_path / "new.pt")
    assert (again.config, again.iteration) == (checkpoint.config, checkpoint.iteration)


def test_its_config_file_is_refused_with_every_new_key():
    with pytest.raises(UserError) as error:
        load_config(DATA / "format1.toml")
    assert str(error.value).endswith(
        "data.test_short_side is now inference.short_side; data.test_long_side is now inference.long_side; "
        "loss.cls_pos is now loss.weight_cls_pos; loss.loc is now loss.weight_loc; "
        "loss.cls_neg is now loss.weight_cls_neg; "
        "loss.ignore_crowd is now data.crowd (false is now background, true is now ignore); "
        "test.score_threshold is now inference.score_threshold; "
        "test.candidates_per_level is now inference.candidates_per_level; test.nms_iou is now inference.nms_iou; "
        "test.max_detections is now inference.max_detections"
    )


def test_a_file_of_format_1_detects(format1, finished, shapes_root, tmp_path, call):
    image = next((shapes_root / "val").iterdir())
    code, _, error = call(predict_command, image, "--weights", format1, "--out", tmp_path / "found")
    assert code == 0, error
    code, printed, error = call(
        evaluate_command, "--weights", format1, "--data", shapes_root, "--out", tmp_path / "evaluation"
    )
    assert code == 0, error
    assert "Average Precision" in printed


def test_a_run_starts_from_a_file_of_format_1(format1):
    checkpoint = load_checkpoint(format1)
    detector = build_detector(checkpoint.config)
    assert start_from(detector, format1, checkpoint.class_names) == str(format1)
    assert all(torch.equal(tensor, checkpoint.ema[name]) for name, tensor in detector.state_dict().items())


def test_a_run_of_format_1_is_resumed(format1, tmp_path, monkeypatch, call):
    """Without --cfg: the old config.toml in its folder is not read, but replaced."""
    monkeypatch.chdir(tmp_path)  # data.root is relative there
    Path("run").mkdir()
    Path("run/config.toml").write_text((DATA / "format1.toml").read_text())
    torch.save(torch.load(format1, weights_only=True) | {"iteration": 4}, "run/last.pt")
    code, _, error = call(train_command, "--resume", "--out", "run")
    assert code == 0, error
    checkpoint = load_checkpoint(Path("run/last.pt"))
    assert (checkpoint.iteration, checkpoint.config) == (7, load_checkpoint(format1).config)
    assert load_config("run/config.toml") == checkpoint.config


def test_fields_that_came_later_have_their_defaults(state):
    for name in ("optimizer", "scaler", "ema"):
        del state[name]
    assert upgrade(state, "x.pt").keys() == state.keys() - {"format"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "x.pt has format 3, and this version of dwtriton reads formats up to 2: update dwtriton"),
        ({"format": None}, "x.pt is not a checkpoint of `python -m dwtriton.train`"),
        ({"sampler": 1}, "x.pt is damaged or of a newer version; missing: [], unexpected: ['sampler']"),
    ],
)
def test_what_cannot_be_read_is_one_line(change, message, state):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        upgrade(state | change, "x.pt")


def test_a_run_continues_with_another_description_but_not_with_another_rate(finished):
    path = finished[0] / "last.pt"
    checkpoint = load_checkpoint(path)

    def resume(*overrides):
        check_continues(path, checkpoint, override_config(checkpoint.config, overrides), checkpoint.class_names)

    resume(
        "description=edited", "published_ap=1.5", "data.root=elsewhere", "train.log_every=7", "inference.compile=true"
    )
    with pytest.raises(UserError, match=r"another config: optimizer\.lr was 0\.003 and is 0\.5\. Resume without"):
        resume("optimizer.lr=0.5", "description=edited")


def test_a_key_that_is_renamed_later_is_upgraded_in_files_of_the_current_format(state, monkeypatch):
    monkeypatch.setitem(RENAMED, "train.old_seed", "train.seed")
    config = state["config"].replace("\nseed = ", "\nold_seed = ")
    assert "old_seed" in config
    assert upgrade(state | {"config": config}, "x.pt")["config"]["train"]["seed"] == 0


@pytest.mark.parametrize("config", ["[data", None], ids=["not TOML", "no text"])
def test_a_damaged_config_is_one_line(config, state):
    with pytest.raises(UserError, match=r"^x.pt is damaged: its config is not TOML \(.+\)$"):
        upgrade(state | {"config": config}, "x.pt")
