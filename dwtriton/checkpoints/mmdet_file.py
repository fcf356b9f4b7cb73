"""MMDetection's checkpoint files: what is in one, tensor by tensor; nothing in it is executed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dwtriton.config.files import config_names
from dwtriton.config.schema import load_config
from dwtriton.core.errors import UserError
from dwtriton.model.detector import build_detector
from dwtriton.model.state_dict import read_torch_file

CLASS_WEIGHT = "bbox_head.conv_cls.weight"
CENTER_PRIOR = "bbox_head.center_prior."
AVERAGE_ROUNDING = 1e-3  # of a constant near 1 in float32: at most a rounding over a momentum of 1e-4
STATISTICS = re.compile(r"\.(running_mean|running_var|num_batches_tracked)$")  # a moving average may leave these out
NOT_NEEDED = {
    "meta": "the records of the run, but for class names, epoch and iteration",
    "optimizer": "its state belongs to MMDetection's training; the weights can start a run, not resume one",
    "param_schedulers": "the state of MMDetection's schedule",
    "message_hub": "the logs of the run",
}


class Skipped:
    """Stands in for an object that is not needed while a file is read: takes every value and keeps none."""

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
    """A checkpoint of MMDetection, under its own names."""

    weights: dict[str, Tensor]  # what MMDetection tests with: the moving average, if training kept one
    trained: dict[str, Tensor] | None  # then these are the weights that the optimiser moved
    meta: dict[str, Any]
    left_out: dict[str, str]  # what else the file holds, and why it is not converted

    @property
    def class_names(self) -> list[str] | None:
        """Of label 0, 1, ..., if the file has them: `CLASSES` in 2.x, within `dataset_meta` in 3.x."""
        dataset = self.meta.get("dataset_meta")
        dataset = dataset if isinstance(dataset, dict) else {}
        names = self.meta.get("CLASSES") or dataset.get("classes") or dataset.get("CLASSES")
        return [names] if isinstance(names, str) else names and list(names)

    @property
    def num_classes(self) -> int | None:
        """Channels of the class convolution; None in a file that has none."""
        return len(self.weights[CLASS_WEIGHT]) if CLASS_WEIGHT in self.weights else None

    @property
    def iteration(self) -> int:
        """Iterations trained, 0 if the file does not say."""
        iteration = self.meta.get("iter")
        return iteration if isinstance(iteration, int) else 0


def read_checkpoint_file(path: Path) -> dict:
    """The dict in a checkpoint of whatever origin, on the CPU, with `Skipped` where it holds other than plain values.

    Raises UserError if the file is missing, damaged, holds something else than a dict, or an object of another kind.
    """
    try:
        with torch.serialization.safe_globals([(Skipped, name) for name in SKIPPED]):
            content = read_torch_file(path, "checkpoint")
    except UserError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error.__cause__))
        if refused is None:
            raise
        raise UserError(
            f"{path} holds an object {refused[1]}: reading it could run code, so the file is refused. If you trust it, "
            f"save its tensors alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dict")
    return content


def is_mmdet(content: Mapping) -> bool:
    """Whether this is the content of a detector's checkpoint by MMDetection, or the bare state dict of one."""
    state = content.get("state_dict", content)
    return isinstance(state, Mapping) and any("bbox_head." in str(name) for name in state)


def sort_mmdet(content: Mapping, source: str) -> MmdetFile:
    """Tell apart what an MMDetection checkpoint holds; `source` names it in errors.

    Understood are bare state dicts, the files of mmcv (2.x) and mmengine (3.x), the prefix `module.` of a parallel
    wrapper, and both kinds of moving average. Raises UserError that lists all tensors which belong to none of these.
    """
    parts = dict(content) if "state_dict" in content else {"state_dict": content}
    weights = _tensors(parts.pop("state_dict"), f"state_dict of {source}")
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    meta = parts.get("meta") if isinstance(parts.get("meta"), dict) else {}
    left_out = {}
    if not parts.get("ema_state_dict", True):
        left_out["ema_state_dict"] = "empty"
        del parts["ema_state_dict"]
    if "ema_state_dict" in parts:
        trained = _tensors(parts.pop("ema_state_dict"), f"ema_state_dict of {source}")
        if trained.pop("steps", None) is not None:
            left_out["ema_state_dict.steps"] = "1 tensor: updates of the moving average"
        trained = {name.removeprefix("module."): tensor for name, tensor in trained.items()}
    else:
        weights, trained = _split_buffers(weights)

    unknown = []
    for name, part in parts.items():
        count = _count(part)
        if count and name not in NOT_NEEDED:
            unknown.append(f"{name}: {count} tensors")
        left_out[str(name)] = f"{count} tensors: " * bool(count) + NOT_NEEDED.get(name, "not part of the model")
    if trained:
        missing = (name for name in weights.keys() - trained.keys() if not STATISTICS.search(name))
        unknown += [f"missing beside the moving average: {name}" for name in missing]
        weights |= {name: trained[name] for name in weights if _is_averaged_constant(name, weights, trained)}
        trained = weights | trained
    if unknown:
        raise UserError(f"{source} has parts that nothing is known of:\n  " + "\n  ".join(sorted(unknown)))
    return MmdetFile(weights, trained or None, meta, left_out)


def config_misfits(weights: Mapping[str, Tensor], num_classes: int | None) -> dict[str, int]:
    """How many tensors do not fit each shipped config, with its number of classes changed if `num_classes` is given."""
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    overrides = [] if num_classes is None else [f"head.num_classes={num_classes}"]
    misfits = {}
    for config in config_names():
        with torch.device("meta"):
            own = build_detector(load_config(config, overrides)).mmdet_state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        misfits[config] = sum(shapes.get(name) != given.get(name) for name in shapes.keys() | given.keys())
    return misfits


def _split_buffers(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights, and the second set that mmcv's moving average keeps in the model as buffers `ema_<name, dots as _>`.

    Before a checkpoint is written the two change places, so the buffers hold the trained weights.
    """
    buffers = {f"ema_{name.replace('.', '_')}": name for name in state}
    second = {buffers[name]: tensor for name, tensor in state.items() if name in buffers}
    return {name: tensor for name, tensor in state.items() if name not in buffers}, second


def _is_averaged_constant(name: str, weights: dict[str, Tensor], trained: dict[str, Tensor]) -> bool:
    """Whether this is the centre prior's constant, but for the rounding of a moving average."""
    if name not in trained or not name.startswith(CENTER_PRIOR) or weights[name].shape != trained[name].shape:
        return False
    return torch.allclose(weights[name], trained[name], rtol=0, atol=AVERAGE_ROUNDING)


def _tensors(state: Any, source: str) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"the {source} is not a dict of tensors")
    others = [f"{name} ({type(value).__name__})" for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"the {source} should hold tensors alone, but has {', '.join(others)}")
    return dict(state)


def _count(part: Any) -> int:
    """Tensors anywhere in a part of a checkpoint."""
    if isinstance(part, dict | list | tuple):
        return sum(map(_count, part.values() if isinstance(part, dict) else part))
    return int(isinstance(part, Tensor))
