"""Facts about a checkpoint of this package or of MMDetection, and a table of its tensors."""

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table
from torch import Tensor

from dwtriton.checkpoints.checkpoint import Checkpoint, load_checkpoint
from dwtriton.checkpoints.mmdet_config import check_mmdet_config
from dwtriton.checkpoints.mmdet_file import (
    MAX_NAMES,
    RESNET_WEIGHT,
    MmdetFile,
    is_mmdet,
    read_checkpoint_file,
    sort_mmdet,
)
from dwtriton.config.load import flatten
from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.core.text import listed

PARTS = {"fpn": "pyramid", "neck": "pyramid", "bbox_head": "head"}  # by the first component of a tensor's name


def summarise(path: Path) -> tuple[dict[str, str], Table]:
    """Return facts by name and a table of the parts of the network. Raises UserError if the file is no checkpoint."""
    content = read_checkpoint_file(path)
    if "format" in content:
        return _ours(load_checkpoint(path))
    if is_mmdet(content):
        return _mmdet(sort_mmdet(content, str(path)))
    if not all(isinstance(value, Tensor) for value in content.values()):
        keys = listed([*map(str, content)], MAX_NAMES)
        raise UserError(
            f"{path} is neither a checkpoint of this package or MMDetection nor a state dict; it holds {keys}"
        )
    resnet = RESNET_WEIGHT in content
    return {"kind": "ResNet weights, for `from-torchvision`" if resnet else "other state dict"}, _part_table(content)


def _ours(checkpoint: Checkpoint) -> tuple[dict[str, str], Table]:
    published, config = flatten(Config()), flatten(checkpoint.config)
    changes = "; ".join(f"{key} = {value}" for key, value in config.items() if value != published.get(key))
    facts = {
        "kind": "checkpoint of dwtriton",
        "iteration": str(checkpoint.iteration),
        "classes": f"{len(checkpoint.category_ids)}: {listed(checkpoint.labels, MAX_NAMES)}",
        "config": f"r50_1x with {changes or 'no changes'}",
        "optimizer": "included" if checkpoint.optimizer else "none: the run cannot be resumed",
        "EMA": "none" if checkpoint.ema is None else "included: detection uses it",
        "not finite": _not_finite(checkpoint.weights),
    }
    return facts, _part_table(checkpoint.weights)


def _mmdet(file: MmdetFile) -> tuple[dict[str, str], Table]:
    kind = "checkpoint of MMDetection, for `from-mmdet`"
    try:
        check_mmdet_config(file, Config(), "the file")
    except UserError as error:
        kind = f"checkpoint of MMDetection, which `from-mmdet` refuses: {error}"
    facts = {
        "kind": kind,
        "epoch, iteration": f"{file.meta.get('epoch', 'unknown')}, {file.meta.get('iter', 'unknown')}",
        "classes": f"{file.num_classes or 'unknown'}: {listed(file.class_names or ['without names'], MAX_NAMES)}",
        "config": f"fits {file.fitting_configs()}",
        **file.left_out,
        "not finite": _not_finite(file.weights),
    }
    return facts, _part_table(file.weights)


def _not_finite(state: Mapping[str, Tensor]) -> str:
    return listed([name for name, tensor in state.items() if not tensor.isfinite().all()], MAX_NAMES) or "none"


def _part_table(state: Mapping[str, Tensor]) -> Table:
    table = Table("part", "tensors", "values", "dtypes")
    by_part: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        first = name.partition(".")[0]
        by_part.setdefault(PARTS.get(first, first), []).append(tensor)
    for part, tensors in {**by_part, "all": list(state.values())}.items():
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
        table.add_row(part, f"{len(tensors):,}", f"{sum(t.numel() for t in tensors):,}", ", ".join(dtypes))
    return table
