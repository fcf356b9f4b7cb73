"""Damaged checkpoints are refused in one line: any flipped bit, and content that a checkpoint cannot have."""

import math
import random
import re

import pytest
import torch

from dwtriton.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dwtriton.core.errors import UserError, WriteError
from dwtriton.model import state_dict
from dwtriton.model.detector import build_detector
from dwtriton.train.step import TrainStep
from tests.support.faulty_disk import BROKEN, FULL, faulty_disk

TRIES = 200  # flipped bits


@pytest.fixture
def checkpoint(small_config):
    tensors = {"weight": torch.linspace(-1, 1, 4000), "bias": torch.arange(7)}
    momenta = {"state": {0: {"momentum_buffer": torch.linspace(0, 1, 4000)}}, "param_groups": [{"lr": 0.1}]}
    data = {"training data": {"images": 3, "boxes": 4, "image_digest": "a", "box_digest": "b"}}
    return Checkpoint(small_config(), ["a", "b", "c"], [1, 2, 7], 12, tensors, momenta, data=data)


def test_no_flipped_bit_changes_a_checkpoint(checkpoint, tmp_path):
    """Most are refused; those between the parts of the archive change nothing that is read."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint)
    whole, generator, refused = path.read_bytes(), random.Random(0), []
    for _ in range(TRIES):
        content = bytearray(whole)
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        try:
            found = load_checkpoint(path)
        except UserError as error:
            refused.append(str(error))
        else:
            assert found.iteration == 12
            assert torch.equal(found.model["weight"], checkpoint.model["weight"])
            assert torch.equal(found.optimizer["state"][0]["momentum_buffer"], torch.linspace(0, 1, 4000))
    assert len(refused) > TRIES / 2
    message = re.compile(rf"checkpoint {path} cannot be read, it is damaged or something else \(.+\)")
    assert [line for line in refused if not message.fullmatch(line)] == []


def test_a_checkpoint_that_the_disk_changes_does_not_replace_the_one_before(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint)

    def changed(written):
        content = bytearray(written.read_bytes())
        content[len(content) // 2] ^= 1
        written.write_bytes(content)
        check_archive(written)

    check_archive = state_dict._check_archive
    monkeypatch.setattr(state_dict, "_check_archive", changed)
    with pytest.raises(WriteError, match=rf"^{path} cannot be written: the disk gives something else back \(the check"):
        save_checkpoint(path, checkpoint._replace(iteration=13))
    monkeypatch.undo()
    assert load_checkpoint(path).iteration == 12
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [FULL, BROKEN])
def test_wherever_the_disk_fails_the_checkpoint_is_the_old_one_or_the_new_one(number, checkpoint, tmp_path):
    path = tmp_path / "last.pt"
    with faulty_disk(healthy=math.inf) as disk:
        save_checkpoint(path, checkpoint)
    for healthy in range(len(disk.calls)):
        save_checkpoint(path, checkpoint)
        with faulty_disk(healthy, number), pytest.raises(WriteError, match=r"last\.pt cannot be written: \w"):
            save_checkpoint(path, checkpoint._replace(iteration=13))
        assert load_checkpoint(path).iteration == (12 if healthy <= disk.calls.index("replace") else 13)
        assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_names", None),
        ("class_names", ["a", 2, "c"]),
        ("class_names", ["a", "b"]),
        ("category_ids", "123"),
        ("category_ids", [1, 2, None]),
        ("iteration", "5"),
        ("iteration", None),
        ("iteration", -1),
        ("iteration", True),
        ("model", None),
        ("model", {"weight": [1.0]}),
        ("optimizer", [1]),
        ("scaler", 2.0),
        ("ema", {1: torch.zeros(1)}),
        ("data", {"training data": 3}),
    ],
)
def test_content_that_cannot_be_is_one_line(name, value, checkpoint, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint)
    torch.save(torch.load(path, weights_only=True) | {name: value}, path)
    with pytest.raises(UserError, match=f"^{path} is damaged: it holds no valid {name}$"):
        load_checkpoint(path)


def test_the_state_of_another_optimiser_is_one_line(small_config, tmp_path):
    cfg = small_config(train={"precision": "float32", "compile": "off", "ema_decay": 0.9})
    step = TrainStep(build_detector(cfg), cfg, torch.device("cpu"))
    whole = Checkpoint(cfg, [], [1, 2, 3], 5, **step.checkpoint_state())
    step.load(whole, tmp_path)
    groups = whole.optimizer["param_groups"]
    wrong_shape = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": groups}
    for optimizer in ({}, {"state": {}, "param_groups": groups[:1]}, {"state": [], "param_groups": 3}, wrong_shape):
        with pytest.raises(UserError, match=rf"^{tmp_path} is damaged: its optimiser state does not fit \(.+\)$"):
            step.load(whole._replace(optimizer=optimizer), tmp_path)
    with pytest.raises(UserError, match=f"^the EMA in {tmp_path} does not fit the model"):
        step.load(whole._replace(ema=None), tmp_path)
