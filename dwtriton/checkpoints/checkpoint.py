"""Checkpoints: one file with everything a run needs to go on, written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dwtriton.checkpoints.mmdet_file import is_mmdet, read_checkpoint_file
from dwtriton.config.schema import Config, dump_config, flatten, override_config, parse_toml
from dwtriton.core.errors import UserError
from dwtriton.core.files import write_atomically
from dwtriton.model.detector import DualWeightDetector, build_detector
from dwtriton.model.state_dict import check_tensors

FORMAT = 1
MAY_CHANGE = {
    "data.root",
    "data.workers",
    "inference.compile",
    "train.activation_checkpointing",
    "train.checkpoint_every",
    "train.compile",
    "train.compile_ahead",
    "train.evaluate_every",
    "train.keep_every",
    "train.log_every",
    "train.tensorboard",
}


class CheckpointError(UserError):
    """A checkpoint that cannot be read or does not fit: names the file, the tensors and the remedy."""


class Checkpoint(NamedTuple):
    """State of a run after `iteration` optimiser steps."""

    config: Config
    class_names: list[str]  # of label 0, 1, ...
    category_ids: list[int]  # ids of the same classes in the annotation file
    iteration: int
    model: dict[str, torch.Tensor]
    optimizer: dict | None = None  # None in a converted checkpoint, which cannot be resumed
    scaler: dict | None = None  # of float16
    ema: dict[str, torch.Tensor] | None = None  # moving average of `model`

    @property
    def labels(self) -> list[str]:
        """What to call the classes: their names, or their category ids where the checkpoint has no names."""
        return self.class_names or [str(id_) for id_ in self.category_ids]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """What to detect with: the moving average, if the run kept one."""
        return self.model if self.ema is None else self.ema


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, whole or not at all."""
    state = checkpoint._asdict() | {"format": FORMAT, "config": dump_config(checkpoint.config)}
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU. Raises UserError if the file is missing, damaged or something else."""
    state = read_checkpoint_file(path)
    if is_mmdet(state):
        raise CheckpointError(
            f"{path} is a checkpoint of MMDetection; convert it first: "
            f"python -m dwtriton.weights from-mmdet {path} --cfg NAME --out OUT.pt"
        )
    if state.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of `python -m dwtriton.train`")
    fields = set(Checkpoint._fields)
    if state.keys() != fields:
        raise CheckpointError(
            f"{path} is damaged or of another version: it lacks {sorted(fields - state.keys()) or 'nothing'} and has "
            f"{sorted(state.keys() - fields) or 'nothing'} besides"
        )
    return Checkpoint(**state | {"config": parse_toml(state["config"], str(path))})


def check_continues(path: Path, checkpoint: Checkpoint, cfg: Config, class_names: list[str]) -> None:
    """Raise CheckpointError unless going on with `cfg` and these classes gives what an uninterrupted run would."""
    if checkpoint.optimizer is None:
        raise CheckpointError(
            f"{path} holds weights alone and cannot be resumed; --weights {path} starts a run from it"
        )
    old, new = flatten(checkpoint.config), flatten(cfg)
    changed = sorted(key for key in (old.keys() | new.keys()) - MAY_CHANGE if old.get(key) != new.get(key))
    if changed:
        changes = "; ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in changed)
        raise CheckpointError(f"{path} belongs to another config: {changes}. Resume without --cfg to use the run's own")
    if checkpoint.class_names != class_names:
        raise CheckpointError(f"{path} was trained on the classes {checkpoint.class_names}, the data has {class_names}")


def check_classes(path: Path, checkpoint: Checkpoint, class_names: list[str]) -> None:
    """Raise CheckpointError unless the classes of a checkpoint, by number if it has no names, are those of the data."""
    if len(checkpoint.category_ids) != len(class_names) or checkpoint.class_names not in ([], class_names):
        raise CheckpointError(f"{path} knows {checkpoint.labels}, the data has {class_names}")


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Copy `weights` into the model. Raises UserError listing every tensor that does not fit."""
    check_tensors(model.state_dict(), weights, source)
    model.load_state_dict(weights)


def load_detector(
    path: Path, overrides: Sequence[str] = (), data_root: Path | None = None
) -> tuple[DualWeightDetector, Checkpoint]:
    """The detector of a checkpoint on the CPU, in evaluation mode, and the checkpoint with its config overridden.

    Data in `data_root` are taken as they are: nothing is generated there, and they may be others than the run's.
    Raises UserError for a file that is no checkpoint, and for overrides that do not fit it.
    """
    checkpoint = load_checkpoint(path)
    config = override_config(checkpoint.config, overrides, data_root)
    if data_root is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"shapes": None})})
    checkpoint = checkpoint._replace(config=config)
    detector = build_detector(config).eval()
    load_weights(detector, checkpoint.weights, str(path))
    return detector, checkpoint


def start_from(detector: DualWeightDetector, path: Path, class_names: list[str]) -> str:
    """Load the weights of a checkpoint into a detector whose run begins; returns what was taken, in words.

    With another number of classes the class convolution keeps its fresh weights. Raises UserError for whatever else
    does not fit, and for a file that is no checkpoint.
    """
    checkpoint = load_checkpoint(path)
    weights, note = checkpoint.weights, ""
    if len(checkpoint.class_names) != len(class_names):
        own = detector.state_dict()
        weights = weights | {name: own[name] for name in own if name.startswith("head.class_conv.")}
        note = f" but for the class convolution ({len(checkpoint.class_names)} classes there, {len(class_names)} here)"
    load_weights(detector, weights, str(path))
    return f"{path}{note}"
