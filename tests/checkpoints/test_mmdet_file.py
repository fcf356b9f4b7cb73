"""MMDetection's files: every kind is read without running anything in it, and every tensor in it is accounted for."""

import sys
import types

import numpy as np
import pytest
import torch

from dwtriton import build_detector
from dwtriton.checkpoints.mmdet_file import config_misfits, is_mmdet, read_checkpoint_file, sort_mmdet
from dwtriton.core.errors import UserError


@pytest.fixture
def trained(small_config):
    """Weights under MMDetection's names."""
    torch.manual_seed(0)
    return build_detector(small_config()).mmdet_state_dict()


@pytest.fixture
def foreign(monkeypatch):
    """Objects as mmengine and NumPy's older versions write them; they fail if reading runs them."""

    class HistoryBuffer:
        def __init__(self):
            self.history, self.statistics_methods = np.array([0.5, 0.25]), {"min": HistoryBuffer.min}

        def __setstate__(self, state):
            raise AssertionError("reading a file must not run its objects")

        def min(self): ...

    def scalar(*_):
        raise AssertionError("reading a file must not run its objects")

    class OldScalar:
        def __reduce__(self):
            return scalar, (np.dtype("f8"), b"\0" * 8)

    for module in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    for module, member in (("mmengine.logging.history_buffer", HistoryBuffer), ("numpy.core.multiarray", scalar)):
        member.__module__, member.__qualname__ = module, member.__name__
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{member.__name__: member}))
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = HistoryBuffer.__module__, "HistoryBuffer.min"
    return {"log": HistoryBuffer(), "old score": OldScalar(), "score": np.float64(0.415)}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("tool", ["mmcv", "mmengine"])
def test_files_are_read_with_all_that_the_tools_write_beside_the_weights(tool, legacy, trained, foreign, tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.01, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    content = {"state_dict": trained, "optimizer": optimizer.state_dict()}
    if tool == "mmcv":
        hooks = {"best_score": foreign["score"], "old": foreign["old score"]}
        content["meta"] = {"epoch": 12, "iter": 87960, "CLASSES": ("a", "b", "c"), "seed": None, "hook_msgs": hooks}
    else:
        content["meta"] = {"epoch": 12, "iter": 87960, "dataset_meta": {"classes": ["a", "b", "c"]}}
        content["message_hub"] = {"log_scalars": {"train/loss": foreign["log"]}}
        content["param_schedulers"] = [{"last_step": 87960}]
    torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint_file(tmp_path / "m.pth")
    assert is_mmdet(read)
    file = sort_mmdet(read, "m.pth")
    assert_same(file.weights, trained)
    assert (file.class_names, file.num_classes, file.iteration) == (["a", "b", "c"], 3, 87960)
    assert file.left_out.keys() == content.keys() - {"state_dict"}
    assert file.left_out["optimizer"].startswith("1 tensors: ")


def test_bare_state_dicts_and_the_prefix_of_parallel_wrappers(trained):
    prefixed = {f"module.{name}": tensor for name, tensor in trained.items()}
    for content in (trained, prefixed, {"state_dict": prefixed}):
        assert is_mmdet(content)
        file = sort_mmdet(content, "m.pth")
        assert_same(file.weights, trained)
        assert (file.class_names, file.iteration, file.left_out) == (None, 0, {})
    assert sort_mmdet({"state_dict": trained, "meta": {"CLASSES": "person"}}, "m.pth").class_names == ["person"]
    assert not is_mmdet({"model": trained})


def test_of_an_ema_only_weights_that_are_known_to_be_it_are_taken(trained):
    """mmengine puts the EMA into the state dict; mmcv's hook keeps a second set in the model, perhaps exchanged."""
    module = {f"module.{name}": tensor + 1 for name, tensor in trained.items()} | {"steps": torch.tensor(5)}
    file = sort_mmdet({"state_dict": trained, "ema_state_dict": module}, "m.pth")
    assert_same(file.weights, trained)
    assert file.left_out["ema_state_dict"].startswith(f"{len(trained) + 1} tensors: weights without EMA")
    buffers = {f"ema_{name.replace('.', '_')}": tensor for name, tensor in trained.items()}
    prefixed = {f"module.{name}": tensor for name, tensor in (trained | buffers).items()}
    for content in (trained | buffers, prefixed, {"state_dict": trained | buffers}):
        with pytest.raises(
            UserError, match=rf"m\.pth holds two sets .* \({len(trained)} tensors such as ema_backbone_"
        ) as e:
            sort_mmdet(content, "m.pth")
        assert "\n" not in str(e.value)


def test_unknown_parts_and_values_that_are_no_tensors_are_listed_in_one_error(trained):
    content = {"state_dict": trained, "critic": {"a": [torch.zeros(2)]}, "actor": torch.zeros(1), "note": "no tensors"}
    with pytest.raises(UserError) as error:
        sort_mmdet(content, "m.pth")
    assert str(error.value).split("\n  ") == ["m.pth has unknown parts:", "actor: 1 tensors", "critic: 1 tensors"]
    with pytest.raises(UserError, match=r"state_dict of m\.pth .* has backbone\.x \(int\), bbox_head\.b \(str\)"):
        sort_mmdet({"state_dict": trained | {"backbone.x": 3, "bbox_head.b": "y"}}, "m.pth")
    with pytest.raises(UserError, match="not a dict"):
        sort_mmdet({"state_dict": [trained]}, "m.pth")


class RunsACommand:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return __import__("os").system, (f"touch {self.path}",)


class Unknown:
    pass


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_objects_that_could_run_code_are_refused_by_name(legacy, tmp_path):
    cases = [(RunsACommand(tmp_path / "ran"), "posix.system"), (Unknown(), f"{__name__}.Unknown"), (print, "print")]
    for value, name in cases:
        content = {"state_dict": {}, "meta": {"hook": value}}
        torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=rf"m\.pth holds an object {name}: .* is refused.*save its tensors alone"):
            read_checkpoint_file(tmp_path / "m.pth")
    assert not (tmp_path / "ran").exists()
    assert not any(isinstance(allowed, tuple) for allowed in torch.serialization.get_safe_globals())


def test_files_that_are_no_checkpoints_say_so(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        read_checkpoint_file(tmp_path / "none.pth")
    (tmp_path / "m.pth").write_bytes(b"PK\3\4 and then nothing")
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint_file(tmp_path / "m.pth")
    torch.save([torch.zeros(1)], tmp_path / "m.pth")
    with pytest.raises(UserError, match="it holds a list, not a dict"):
        read_checkpoint_file(tmp_path / "m.pth")


def test_released_models_fit_their_configs_and_no_others(released_names):
    fitting = {
        "r50_1x": {"r50_1x", "fcos_r50_1x", "atss_r50_1x", "simota_r50_1x", "tal_r50_1x"},  # one network
        "r50_refine_1x": {"r50_refine_1x", "r50_refine_ms_2x"},
        "r50_dcn_refine_ms_2x": {"r50_dcn_refine_ms_2x"},
    }
    shapes = {
        name: {entry["name"]: torch.empty(entry["shape"], device="meta") for entry in released_names[name]["entries"]}
        for name in fitting
    }
    misfits = {name: config_misfits(shapes[name], 80) for name in fitting}
    assert {name: {config for config in counts if not counts[config]} for name, counts in misfits.items()} == fitting
    assert misfits["r50_1x"]["r50_refine_1x"] == 2  # weight and bias of the offset convolution
    assert config_misfits(shapes["r50_1x"], 3)["r50_1x"] == 4  # class convolution and centre prior
