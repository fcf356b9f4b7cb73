"""What a checkpoint holds, in words and in a table, whoever wrote it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.table import Table
from rich.text import Text
from torch import Tensor

from dwtriton.checkpoints.checkpoint import Checkpoint, load_checkpoint
from dwtriton.checkpoints.mmdet_file import MmdetFile, config_misfits, is_mmdet, read_checkpoint_file, sort_mmdet
from dwtriton.config.files import config_names
from dwtriton.config.schema import Config, flatten, load_config
from dwtriton.core.errors import UserError
from dwtriton.model.detector import build_detector

PARTS = {  # by the first part of a tensor's name: ours, MMDetection's, torchvision's
    "fpn": "pyramid",
    "neck": "pyramid",
    "bbox_head": "head",
    "fc": "classifier",
    **dict.fromkeys(("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), "backbone"),
}
LISTED = 12  # names in one line


def summarise(path: Path) -> tuple[dict[str, str], Table]:
    """(facts, tensors by part) of a checkpoint of ours or MMDetection's, or a state dict of a torchvision ResNet.

    Raises UserError if it is none of these or cannot be read.
    """
    content = read_checkpoint_file(path)
    if "format" in content:
        return _ours(load_checkpoint(path))
    if is_mmdet(content):
        return _mmdet(sort_mmdet(content, str(path)))
    if "layer1.0.conv1.weight" in content and all(isinstance(value, Tensor) for value in content.values()):
        return _torchvision(content)
    raise UserError(
        f"{path} is neither a checkpoint of this package or MMDetection nor the state dict of a torchvision ResNet; "
        f"it holds {some(map(str, content))}"
    )


def _ours(checkpoint: Checkpoint) -> tuple[dict[str, str], Table]:
    facts = {
        "what": "checkpoint of dwtriton",
        "iteration": str(checkpoint.iteration),
        "classes": f"{len(checkpoint.class_names)}: {some(checkpoint.class_names)}",
        "config": _nearest_config(checkpoint.config),
        "optimizer": "its state is here" if checkpoint.optimizer else "none: starts or evaluates, cannot be resumed",
        "moving average": "none" if checkpoint.ema is None else "beside the trained weights; detection uses it",
        "not finite": _not_finite({"model": checkpoint.model, "ema": checkpoint.ema}),
    }
    with torch.device("meta"):
        detector = build_detector(checkpoint.config)
    trains = {name: parameter.requires_grad for name, parameter in detector.named_parameters()}
    return facts, _part_table(checkpoint.model, trains)


def _mmdet(file: MmdetFile) -> tuple[dict[str, str], Table]:
    misfits = config_misfits(file.weights, file.num_classes)
    least = min(misfits.values())
    nearest = ", ".join(name for name in misfits if misfits[name] == least)
    names = file.class_names
    facts = {
        "what": "checkpoint of MMDetection; `from-mmdet` converts it",
        "epoch, iteration": f"{file.meta.get('epoch', 'not given')}, {file.meta.get('iter', 'not given')}",
        "classes": f"{file.num_classes or 'unknown'}: {some(names) if names else 'without names'}",
        "config": f"{nearest}: {f'{least} tensors differ' if least else 'has just these tensors'}",
        "moving average": "none" if file.trained is None else "in place of the trained weights, which are beside it",
        **file.left_out,
        "not finite": _not_finite({"weights": file.weights, "trained": file.trained}),
    }
    return facts, _part_table(file.weights)


def _torchvision(state: Mapping[str, Tensor]) -> tuple[dict[str, str], Table]:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    fitting = []
    for network in torchvision.models.list_models(torchvision.models, include="*resne*t*"):
        with torch.device("meta"):
            own = torchvision.models.get_model(network, weights=None).state_dict()
        # the classifier is of no use here, and older files lack the counters
        needed = {name for name in own if not name.startswith("fc.") and not name.endswith("num_batches_tracked")}
        if all(shapes.get(name) == tuple(own[name].shape) for name in needed) and shapes.keys() <= own.keys():
            fitting.append(network)
    facts = {
        "what": f"state dict of torchvision's {fitting[0] if fitting else 'ResNet, of no size that it ships'}; "
        "`from-torchvision` makes it a checkpoint",
        "not finite": _not_finite({"backbone": state}),
    }
    return facts, _part_table(state)


def _nearest_config(cfg: Config) -> str:
    """The shipped config with the fewest other values, and these values."""
    own = flatten(cfg)
    changes = {}
    for name in config_names():
        shipped = flatten(load_config(name))
        keys = sorted((own.keys() | shipped.keys()) - {"description", "published_ap"})
        changes[name] = [
            f"{key} = {own.get(key)} ({shipped.get(key)} there)" for key in keys if own.get(key) != shipped.get(key)
        ]
    nearest = min(changes, key=lambda name: len(changes[name]))
    return f"{nearest} with {'; '.join(changes[nearest])}" if changes[nearest] else nearest


def _part_table(state: Mapping[str, Tensor], trains: Mapping[str, bool] | None = None) -> Table:
    """Tensors and values of each part; `trains` says of every parameter whether it does, the rest are statistics."""
    columns = ["part", "tensors", "values", "dtypes"]
    if trains is not None:
        columns += ["trainable", "frozen"]
    table = Table(*columns)
    by_part: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        first = name.partition(".")[0]
        by_part.setdefault(PARTS.get(first, first), {})[name] = tensor
    for part, tensors in {**by_part, "all": state}.items():
        dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
        row: list[Any] = [part, len(tensors), _values(tensors.values()), ", ".join(sorted(dtypes))]
        if trains is not None:
            row += [_values(t for name, t in tensors.items() if trains.get(name) is wanted) for wanted in (True, False)]
        table.add_row(*(Text(value if isinstance(value, str) else f"{value:,}") for value in row))
    return table


def _values(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _not_finite(sets: Mapping[str, Mapping[str, Tensor] | None]) -> str:
    bad = [
        f"{label}: {name}"
        for label, state in sets.items()
        for name, tensor in (state or {}).items()
        if not tensor.isfinite().all()
    ]
    return some(bad) if bad else "none"


def some(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
