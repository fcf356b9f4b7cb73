"""MMDetection's checkpoint files: every tensor is converted or named as left out; nothing in a file is executed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dwtriton.config.load import config_names, load_config
from dwtriton.core.errors import UserError
from dwtriton.core.text import listed
from dwtriton.model.detector import build_detector
from dwtriton.model.mmdet_names import CENTER_PRIOR
from dwtriton.model.state_dict import read_torch_file

CLASS_WEIGHT = "bbox_head.conv_cls.weight"
RESNET_WEIGHT = "layer1.0.conv1.weight"  # in torchvision's state dicts
MAX_NAMES = 12  # names in one line
EMA_BUFFER = "ema_"  # prefix of the buffers of mmcv's EMAHook: ema_backbone_conv1_weight
NOT_NEEDED = {
    "meta": "records of the run, except class names, epoch and iteration",
    "optimizer": "state of MMDetection's training; the weights can start a run, not resume one",
    "ema_state_dict": "weights without EMA; the state_dict is their EMA, with which MMDetection tests",
    "param_schedulers": "state of MMDetection's schedule",
    "message_hub": "logs of the run",
}


class Skipped:
    """Stands for an object that is not needed; keeps none of its values."""

    def __init__(self, *values: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# Scores are NumPy scalars in mmcv's records; mmengine's logs are NumPy arrays and the methods that summarise them.
SKIPPED = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
)


class MmdetFile(NamedTuple):
    """Content of an MMDetection checkpoint, under MMDetection's names."""

    weights: dict[str, Tensor]
    meta: dict[str, Any]
    left_out: dict[str, str]  # the other parts of the file, and why they are not converted

    @property
    def class_names(self) -> list[str] | None:
        """Names of label 0, 1, ..., if the file has them: `CLASSES` in 2.x, within `dataset_meta` in 3.x."""
        dataset = self.meta.get("dataset_meta") or {}
        names = self.meta.get("CLASSES") or dataset.get("classes") or dataset.get("CLASSES")
        return [names] if isinstance(names, str) else names and list(names)

    @property
    def num_classes(self) -> int | None:
        """Output channels of the class convolution; None in a file without one."""
        return len(self.weights[CLASS_WEIGHT]) if CLASS_WEIGHT in self.weights else None

    @property
    def iteration(self) -> int:
        """Iterations trained; 0 if the file does not say."""
        return self.meta.get("iter", 0)

    def fitting_configs(self) -> str:
        """Return the shipped configs that have just these tensors, as options: "--cfg r50_1x or --cfg NAME"."""
        misfits = config_misfits(self.weights, self.num_classes)
        return " or ".join(f"--cfg {name}" for name, count in misfits.items() if not count) or "no shipped config"


def read_checkpoint_file(path: Path) -> dict:
    """Read the dict in a checkpoint of any origin to the CPU; objects in `SKIPPED` become `Skipped`.

    Raises UserError if the file is missing or damaged, does not hold a dict, or holds any other object.
    """
    try:
        with torch.serialization.safe_globals([(Skipped, name) for name in SKIPPED]):
            content = read_torch_file(path, "checkpoint")
    except UserError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error.__cause__))  # torch 2.11 names the class; picks the message only
        if refused is None:
            raise
        raise UserError(
            f"{path} holds an object {refused[1]}: reading it could run code, so the file is refused. If you trust it, "
            "save its tensors alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dict")
    return content


def is_mmdet(content: Mapping) -> bool:
    """Return whether this is the content of an MMDetection detector's checkpoint, or its bare state dict."""
    state = content.get("state_dict", content)
    return isinstance(state, Mapping) and any("bbox_head." in str(name) for name in state)


def kind_of(content: Mapping) -> str:
    """Say in words whose checkpoint this is the content of."""
    if "format" in content:
        return "a checkpoint of this package"
    if is_mmdet(content):
        return "one of MMDetection"
    if RESNET_WEIGHT in content:
        return "weights of a ResNet"
    if all(isinstance(value, Tensor) for value in content.values()):
        return "a state dict of another network"
    return f"a file of another kind that holds {listed([*map(str, content)], MAX_NAMES)}"


def sort_mmdet(content: Mapping, source: str) -> MmdetFile:
    """Sort the parts of an MMDetection checkpoint, of 2.x (mmcv) or 3.x (mmengine), or of a bare state dict.

    Names may have the prefix `module.` of parallel wrappers. Raises UserError, which names `source`, for the buffers of
    mmcv's EMA and for tensors in unknown parts, listing all of these.
    """
    parts = dict(content) if "state_dict" in content else {"state_dict": content}
    weights = parts.pop("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise UserError(f"the state_dict of {source} is not a dict of tensors")
    others = [f"{name} ({type(value).__name__})" for name, value in weights.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"the state_dict of {source} should hold tensors alone, but has {', '.join(others)}")
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    if buffers := [name for name in weights if name.startswith(EMA_BUFFER)]:
        raise UserError(
            f"{source} holds two sets of weights, from an EMA hook ({len(buffers)} tensors such as {buffers[0]}), and "
            f"does not say which is the EMA: save the set to convert alone, under the model's own names"
        )
    counts = {str(name): _count(part) for name, part in parts.items()}
    if unknown := [f"{name}: {count} tensors" for name, count in counts.items() if count and name not in NOT_NEEDED]:
        raise UserError("\n  ".join([f"{source} has unknown parts:", *sorted(unknown)]))
    left_out = {
        name: f"{count} tensors: " * bool(count) + NOT_NEEDED.get(name, "not part of the model")
        for name, count in counts.items()
    }
    meta = parts.get("meta")
    return MmdetFile(weights, meta if isinstance(meta, dict) else {}, left_out)


def config_misfits(weights: Mapping[str, Tensor], num_classes: int | None) -> dict[str, int]:
    """Count the tensors that do not fit, for each shipped config; `num_classes` replaces its number of classes."""
    given = {(name, tensor.shape) for name, tensor in weights.items()}
    overrides = [f"head.num_classes={num_classes}"] if num_classes else []
    misfits = {}
    for config in config_names():
        with torch.device("meta"):
            own = build_detector(load_config(config, overrides)).mmdet_state_dict()
        if not any(name in weights for name in CENTER_PRIOR):  # which may be absent
            own = {name: tensor for name, tensor in own.items() if name not in CENTER_PRIOR}
        misfits[config] = len({name for name, _ in given ^ {(name, tensor.shape) for name, tensor in own.items()}})
    return misfits


def _count(part: Any) -> int:
    """Count the tensors anywhere in a part of a checkpoint."""
    if isinstance(part, dict | list | tuple):
        return sum(map(_count, part.values() if isinstance(part, dict) else part))
    return int(isinstance(part, Tensor))
