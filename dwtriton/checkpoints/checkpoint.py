"""Checkpoints: one file with everything a run needs to resume.

A file is a dict of the fields of `Checkpoint`, its config as TOML text, and "format". A new field needs a default, for
older files. Any other change, such as a renamed key, makes a new format and adds a step to `upgrade`.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dwtriton.checkpoints.mmdet_file import is_mmdet, kind_of, read_checkpoint_file
from dwtriton.config.load import check_config, dump_config, flatten
from dwtriton.config.renames import upgrade_keys
from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.core.text import listed
from dwtriton.model.detector import DualWeightDetector
from dwtriton.model.state_dict import check_tensors, write_torch_file

FORMAT = 2
MAX_NAMES = 12  # of classes in a note


class Checkpoint(NamedTuple):
    """State of a run after `iteration` optimiser steps. Tensors are on the CPU once read."""

    config: Config
    class_names: list[str]  # of label 0, 1, ...; empty if unknown
    category_ids: list[int]  # of the same classes in the annotation file
    iteration: int
    model: dict[str, torch.Tensor]  # state dict
    optimizer: dict | None = None  # state dict; None in a converted checkpoint, which cannot be resumed
    scaler: dict | None = None  # state dict of the GradScaler, with float16 only
    ema: dict[str, torch.Tensor] | None = None  # state dict of the EMA of the model
    data: dict[str, dict] | None = None  # fingerprints of the training and the validation data; None if unknown

    @property
    def labels(self) -> list[str]:
        """Names of the classes for display: their category ids where the checkpoint has no names."""
        return self.class_names or [str(id_) for id_ in self.category_ids]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """State dict to detect with: the EMA, if the run kept one."""
        return self.model if self.ema is None else self.ema


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    )


def _is_list(value: object, *kinds: type) -> bool:
    return isinstance(value, list) and all(type(item) in kinds for item in value)


CONTENT: dict[str, Callable[[Any], bool]] = {  # what the fields of a file hold, where it is not None; but for `config`
    "class_names": lambda value: _is_list(value, str),
    "category_ids": lambda value: _is_list(value, int, str),
    "iteration": lambda value: type(value) is int and value >= 0,
    "model": _is_state,
    "optimizer": lambda value: isinstance(value, dict),
    "scaler": lambda value: isinstance(value, dict),
    "ema": _is_state,
    "data": lambda value: isinstance(value, dict) and all(isinstance(part, dict) for part in value.values()),
}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint of the current format, whole and read back, or not at all. Raises WriteError."""
    state = checkpoint._asdict() | {"format": FORMAT, "config": dump_config(checkpoint.config)}
    write_torch_file(path, state)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of any format. Raises UserError if the file is missing, damaged or something else."""
    state = read_checkpoint_file(path)
    if is_mmdet(state):
        raise UserError(
            f"{path} is a checkpoint of MMDetection; convert it first: "
            f"python -m dwtriton.weights from-mmdet {path} --cfg NAME --out OUT.pt"
        )
    if "format" not in state:
        raise UserError(f"{path} is not a checkpoint of `python -m dwtriton.train`, but {kind_of(state)}")
    state = upgrade(state, str(path))
    optional = [name for name, default in Checkpoint._field_defaults.items() if state.get(name) is default]
    wrong = [name for name, fits in CONTENT.items() if name not in optional and not fits(state[name])]
    if not wrong and len(state["class_names"]) not in (0, len(state["category_ids"])):
        wrong = ["class_names"]
    if wrong:
        raise UserError(f"{path} is damaged: it holds no valid {', '.join(wrong)}")
    return Checkpoint(**state | {"config": check_config(state["config"], str(path))})


def upgrade(state: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the content of a checkpoint file of any format as fields of `Checkpoint`, the config as nested values.

    Raises UserError, which names `source`, for a newer format and for content that is no checkpoint.
    """
    state = dict(state)
    version = state.pop("format", None)
    if not isinstance(version, int):
        raise UserError(f"{source} is not a checkpoint of `python -m dwtriton.train`")
    if version > FORMAT:
        reads = f"this version of dwtriton reads formats up to {FORMAT}"
        raise UserError(f"{source} has format {version}, and {reads}: update dwtriton")
    missing = sorted(set(Checkpoint._fields) - Checkpoint._field_defaults.keys() - state.keys())
    unexpected = sorted(state.keys() - set(Checkpoint._fields))
    if missing or unexpected:
        raise UserError(f"{source} is damaged or of a newer version; missing: {missing}, unexpected: {unexpected}")
    try:
        return state | {"config": upgrade_keys(tomllib.loads(state["config"]))}
    except (tomllib.TOMLDecodeError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{source} is damaged: its config is not TOML ({error})") from None


def check_continues(path: Path, checkpoint: Checkpoint, cfg: Config, class_names: list[str]) -> None:
    """Raise UserError unless resuming with `cfg` and these classes gives what an uninterrupted run would."""
    if checkpoint.optimizer is None:
        raise UserError(f"{path} holds weights alone and cannot be resumed; --weights FILE starts from it")
    old, new = (flatten(config, fixed_only=True) for config in (checkpoint.config, cfg))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if changed:
        changes = "; ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in changed)
        raise UserError(
            f"{path} belongs to another config: {changes}. Resume without --cfg and --set to use the "
            f"run's own, or begin another run from it: --weights {path}"
        )
    if checkpoint.class_names != class_names:
        raise UserError(f"{path} was trained on the classes {checkpoint.class_names}, the data has {class_names}")


def check_classes(path: Path, checkpoint: Checkpoint, class_names: list[str]) -> None:
    """Raise UserError unless the classes of a checkpoint are those of the data.

    Names are compared, or only numbers of classes where the checkpoint has no names.
    """
    if len(checkpoint.category_ids) != len(class_names) or checkpoint.class_names not in ([], class_names):
        raise UserError(f"{path} knows {checkpoint.labels}, the data has {class_names}")


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Copy `weights` into the model. Raises UserError listing every tensor that does not fit."""
    check_tensors(model.state_dict(), weights, source)
    model.load_state_dict(weights)


def start_from(detector: DualWeightDetector, path: Path, class_names: list[str]) -> str:
    """Load the weights of a checkpoint into the detector of a new run and return a note of what was loaded.

    Rows of the class convolution are those of the classes of the same name; classes that the checkpoint does not know
    keep their fresh weights, as all do if it has no names and another number of classes. Raises UserError for a file
    that is no checkpoint, and for any other tensor that does not fit.
    """
    checkpoint = load_checkpoint(path)
    weights = dict(checkpoint.weights)
    known = checkpoint.class_names
    if not known and len(checkpoint.category_ids) == len(class_names):
        note = f"{path}, which has no class names: its {len(class_names)} classes are taken in their order"
    else:
        matches = [(new, known.index(name)) for new, name in enumerate(class_names) if name in known]
        for key, own in detector.head.class_conv.state_dict().items():
            old, rows = weights[f"head.class_conv.{key}"], own.clone()
            if old.shape[1:] == own.shape[1:]:  # or else it belongs to another network, as loading it will say
                for new, place in matches:
                    rows[new] = old[place]
                weights[f"head.class_conv.{key}"] = rows
        note = str(path) + _class_note(known, class_names, len(checkpoint.category_ids))
    load_weights(detector, weights, str(path))
    return note


def _class_note(known: list[str], class_names: list[str], count: int) -> str:
    """Say which classes of a new run start from those of a checkpoint, unless all do and are the same."""
    if known == class_names:
        return ""
    fresh = [name for name in class_names if name not in known]
    if len(fresh) == len(class_names):
        return f" except the class convolution ({count} classes there, {len(class_names)} here)"
    dropped = [name for name in known if name not in class_names]
    parts = [f"{len(class_names) - len(fresh)} classes matched by name"]
    parts += [f"afresh: {listed(fresh, MAX_NAMES)}"] if fresh else []
    parts += [f"not used: {listed(dropped, MAX_NAMES)}"] if dropped else []
    return f" ({'; '.join(parts)})"
