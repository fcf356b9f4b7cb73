"""safetensors files hold a checkpoint's weights and what describes them; other files are refused in one line."""

import sys
from functools import partial

import pytest
import torch

from dwtriton import build_detector, load_detector
from dwtriton.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dwtriton.weights import __main__ as command


@pytest.fixture
def call(call):
    return partial(call, command)


@pytest.fixture
def checkpoint(small_config, tmp_path):
    """A checkpoint with an EMA, as a file and as it is."""
    torch.manual_seed(0)
    cfg = small_config()
    model, ema = (build_detector(cfg).state_dict() for _ in range(2))
    made = Checkpoint(cfg, ["zebra", "kite", "Eule ä"], [7, 20, 33], 90, model, ema=ema)
    save_checkpoint(tmp_path / "a.pt", made)
    return made


def test_a_checkpoint_comes_back_bit_for_bit(checkpoint, tmp_path, call):
    safetensors = pytest.importorskip("safetensors", reason="needs pip install 'dwtriton[safetensors]'")
    code, printed, error = call("to-safetensors", tmp_path / "a.pt", "--out", tmp_path / "a.safetensors")
    assert code == 0, error
    assert f"converted: {len(checkpoint.ema)} tensors of the EMA" in printed
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert set(file.keys()) == checkpoint.ema.keys()
    assert call("from-safetensors", tmp_path / "a.safetensors", "--out", tmp_path / "b.pt")[0] == 0
    back = load_checkpoint(tmp_path / "b.pt")
    assert back[:4] == checkpoint[:4]
    assert back.ema is None
    assert back.model.keys() == checkpoint.ema.keys()
    assert all(torch.equal(back.model[name], checkpoint.ema[name]) for name in back.model)
    assert load_detector(tmp_path / "b.pt").class_names == checkpoint.class_names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("absent", "does not exist"),
        (b"{}", "is no safetensors file, or a damaged one"),
        ("torch", "is a zip archive, as torch.save writes, and no safetensors file"),
        ("foreign", "1 tensors of another origin"),
        ("short", "does not fit the model"),
        ("not json", "its metadata are not JSON"),
    ],
)
def test_other_files_are_refused(content, message, checkpoint, tmp_path, call):
    torch_files = pytest.importorskip("safetensors.torch", reason="needs pip install 'dwtriton[safetensors]'")
    path = tmp_path / "x.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "torch":
        torch.save({}, path)
    elif content in ("foreign", "not json"):
        metadata = {"dwtriton": "{"} if content == "not json" else None
        torch_files.save_file({"w": torch.zeros(2)}, path, metadata=metadata)
    elif content == "short":
        assert call("to-safetensors", tmp_path / "a.pt", "--out", path)[0] == 0
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata, name = file.metadata(), next(iter(file.keys()))
            torch_files.save_file({name: file.get_tensor(name)}, tmp_path / "y", metadata=metadata)
        (tmp_path / "y").replace(path)
    code, _, error = call("from-safetensors", path, "--out", tmp_path / "b.pt")
    assert code == 2
    assert message in error
    assert "x.safetensors" in error
    assert not (tmp_path / "b.pt").exists()


def test_without_the_extra_one_line_names_it(checkpoint, tmp_path, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for action, file in (("to-safetensors", "a.pt"), ("from-safetensors", "x")):
        code, _, error = call(action, tmp_path / file, "--out", tmp_path / "out")
        assert (code, error) == (2, "error: safetensors is not installed: pip install 'dwtriton[safetensors]'\n")
