"""Ground truth of a batch, packed into tensors whose shapes do not depend on how the boxes fall on the images."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.transfer import to_device


class PackedTargets(NamedTuple):
    """Boxes of all images of a batch, one after another; image b owns the rows `offsets[b]` to `offsets[b + 1] - 1`.

    Rows from `offsets[-1]` on are padding. The order of an image's boxes matters: where two boxes of one class hold the
    same point, the last decides its negative weight.
    """

    boxes: Tensor  # (N, 4) float32 or float64, x1 y1 x2 y2 in pixels
    labels: Tensor  # (N,) int64, 0..C-1
    offsets: Tensor  # (B + 1,) int32
    iscrowd: Tensor | None = None  # (N,) bool, regions to ignore; None: there are none
    weights: Tensor | None = None  # (N,) float32 or float64, at least 0; None: 1 for every box

    @property
    def batch_size(self) -> int:
        return self.offsets.shape[0] - 1

    def to(self, device: torch.device | str) -> "PackedTargets":
        """The same targets on another device."""
        return PackedTargets(*(None if part is None else part.to(device) for part in self))

    def image_index(self) -> Tensor:
        """The image of each row, (N,) int64; B for padding."""
        rows = torch.arange(self.boxes.shape[0], device=self.offsets.device, dtype=self.offsets.dtype)
        return torch.searchsorted(self.offsets[1:].contiguous(), rows, right=True)

    def crowd_mask(self) -> Tensor:
        """Which rows are regions to ignore, (N,) bool; never padding."""
        if self.iscrowd is None:
            return torch.zeros_like(self.labels, dtype=torch.bool)
        return self.iscrowd & (self.image_index() < self.batch_size)

    def box_mask(self) -> Tensor:
        """Which rows are ground truth, (N,) bool: neither padding nor crowd."""
        return (self.image_index() < self.batch_size) & ~self.crowd_mask()


def pack_targets(
    targets: Sequence[Mapping[str, Tensor]], device: torch.device | str, capacity: int | None = None
) -> PackedTargets:
    """Check the targets of a batch on the CPU and pack them on `device`; call it outside a compiled graph.

    The host does not wait for the device, if the targets come from main memory.

    `targets[b]` follows torchvision: `boxes` (G, 4) float32 or float64 xyxy in pixels, `labels` (G,) int64, and
    optionally `iscrowd` (G,) bool or integer, which turns a box into a region to ignore: no ground truth, and no
    negative loss at the points inside, and `weights` (G,) floats of at least 0, factors of the positive losses of boxes
    (0: and no negative loss of the class at the points inside). Other keys are allowed and unused.

    With a `capacity` the tensors have that many rows whatever the batch holds, as CUDA graphs need. Without one, their
    first dimension is marked unbacked, so that `torch.compile` makes one graph for every number of boxes.
    Raises ValueError, naming image and index, for a wrong shape or dtype, a box that is not finite or whose
    x1 > x2 or y1 > y2, a negative label, a weight that is negative or not finite, and for more boxes than `capacity`.
    """
    packed = concatenate_targets(targets, "cpu")
    check_values(packed)
    if capacity is not None:
        packed = _pad(packed, capacity)
    packed = PackedTargets(*(None if part is None else to_device(part, device) for part in packed))
    if capacity is not None:
        return packed
    from torch._dynamo.decorators import mark_unbacked  # slow to import, and of use only to torch.compile

    for tensor in (packed.boxes, packed.labels, packed.iscrowd, packed.weights):
        if tensor is not None:
            mark_unbacked(tensor, 0)
    return packed


def concatenate_targets(
    targets: Sequence[Mapping[str, Tensor]], device: torch.device | str | None = None
) -> PackedTargets:
    """Pack on `device`, or else where the first boxes lie; shapes and dtypes are checked, values are not."""
    if isinstance(targets, Mapping | Tensor) or not isinstance(targets, Sequence):
        raise ValueError(f"targets must be a list with one dict for each image, not {type(targets).__name__}")
    for image, target in enumerate(targets):
        _check_target(image, target)
    if device is None:
        device = targets[0]["boxes"].device if targets else "cpu"
    counts = [0] + [len(target["labels"]) for target in targets]
    dtype = torch.float64 if any(target["boxes"].dtype == torch.float64 for target in targets) else torch.float32
    boxes = [target["boxes"].detach().to(device, dtype) for target in targets]
    labels = [target["labels"].to(device) for target in targets]
    crowds = [target.get("iscrowd", torch.zeros_like(target["labels"])).to(device, torch.bool) for target in targets]
    weights = None
    if any("weights" in target for target in targets):
        given = [target.get("weights", torch.ones_like(target["labels"])).detach() for target in targets]
        weights = torch.cat([torch.empty(0, device=device), *(weight.to(device, torch.float32) for weight in given)])
    return PackedTargets(
        torch.cat([torch.empty(0, 4, dtype=dtype, device=device), *boxes]),
        torch.cat([torch.empty(0, dtype=torch.int64, device=device), *labels]),
        torch.tensor(counts).cumsum(0).to(device, torch.int32, non_blocking=True),
        torch.cat([torch.empty(0, dtype=torch.bool, device=device), *crowds]),
        weights,
    )


def check_packed(packed: PackedTargets) -> None:
    """Raise ValueError unless shapes, dtypes and devices of packed targets fit together; values are not looked at."""
    boxes, labels, offsets, iscrowd, weights = packed
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"packed boxes must be (N, 4) float32 or float64, not {_describe(boxes)}")
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"packed labels must be (N,) int64, not {_describe(labels)}")
    if offsets.ndim != 1 or offsets.shape[0] < 1 or offsets.dtype != torch.int32:
        raise ValueError(f"packed offsets must be (B + 1,) int32, not {_describe(offsets)}")
    if iscrowd is not None and (iscrowd.ndim != 1 or iscrowd.dtype != torch.bool):
        raise ValueError(f"packed iscrowd must be (N,) bool, not {_describe(iscrowd)}")
    if weights is not None and (weights.ndim != 1 or weights.dtype not in (torch.float32, torch.float64)):
        raise ValueError(f"packed weights must be (N,) float32 or float64, not {_describe(weights)}")
    parts = tuple(part for part in (boxes, labels, iscrowd, weights) if part is not None)
    if torch.compiler.is_compiling():  # numbers of rows are unknown then: the graph is to check them when it runs
        for part in parts:
            torch._check(part.shape[0] == boxes.shape[0])
    elif len({len(part) for part in parts}) != 1:
        raise ValueError(f"packed targets must have equally many rows, not {[len(part) for part in parts]}")
    devices = {str(part.device) for part in (*parts, offsets)}
    if len(devices) != 1:
        raise ValueError(f"packed targets must lie on one device, not {sorted(devices)}; pack_targets sees to that")


def check_values(packed: PackedTargets, num_classes: int | None = None) -> None:
    """Raise ValueError, naming image and index, for a box or a label out of range. Looks at values: for CPU tensors."""
    boxes, labels, offsets, _, weights = packed
    if offsets[0] != 0 or (offsets.diff() < 0).any() or offsets[-1] > len(labels):
        raise ValueError(f"packed offsets must rise from 0 to at most {len(labels)}, not {offsets.tolist()}")
    image = packed.image_index()
    used = image < packed.batch_size

    def refuse(bad: Tensor, problem: str) -> None:
        rows = (bad & used).nonzero()
        if len(rows):
            row = int(rows[0])
            where = f"image {int(image[row])}, box {row - int(offsets[image[row]])}"
            raise ValueError(f"targets, {where}: box {boxes[row].tolist()} label {int(labels[row])}: {problem}")

    refuse(~boxes.isfinite().all(1), "coordinates must be finite")
    refuse((boxes[:, :2] > boxes[:, 2:]).any(1), "boxes are x1 y1 x2 y2 in pixels with x1 <= x2 and y1 <= y2")
    refuse(labels < 0, "labels start at 0")
    if weights is not None:
        refuse(~(weights.isfinite() & (weights >= 0)), "weights must be finite and at least 0")
    if num_classes is not None:
        refuse(labels >= num_classes, f"labels must be below the number of classes, {num_classes}")


def _check_target(image: int, target: Mapping[str, Tensor]) -> None:
    if not isinstance(target, Mapping):
        raise ValueError(f"targets, image {image}: expected a dict with boxes and labels, not {type(target).__name__}")
    for name in ("boxes", "labels"):
        if not isinstance(target.get(name), Tensor):
            raise ValueError(f"targets, image {image}: {name!r} is missing or not a tensor")
    boxes, labels = target["boxes"], target["labels"]
    crowd = target.get("iscrowd", labels)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"targets, image {image}: boxes must be (G, 4), not {_describe(boxes)}; for no boxes give torch.zeros(0, 4)"
        )
    if boxes.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"targets, image {image}: boxes must be float32 or float64 pixels, not {_describe(boxes)}")
    if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"targets, image {image}: labels must be ({len(boxes)},) int64, not {_describe(labels)}")
    if not isinstance(crowd, Tensor) or crowd.shape != labels.shape or crowd.is_floating_point():
        raise ValueError(
            f"targets, image {image}: iscrowd must be ({len(boxes)},) bool or integer, not {_describe(crowd)}"
        )
    weights = target.get("weights")
    if "weights" in target and (
        not isinstance(weights, Tensor) or weights.shape != labels.shape or not weights.is_floating_point()
    ):
        raise ValueError(
            f"targets, image {image}: weights must be ({len(boxes)},) floating point, not {_describe(weights)}"
        )


def _pad(packed: PackedTargets, capacity: int) -> PackedTargets:
    """The same targets in `capacity` rows; the added rows are zero."""
    count = len(packed.labels)
    if count > capacity:
        raise ValueError(
            f"{count} boxes in the batch, but a capacity of {capacity}; raise it to the most a batch holds"
        )

    def pad(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return torch.cat((tensor, tensor.new_zeros(capacity - count, *tensor.shape[1:])))

    return PackedTargets(
        pad(packed.boxes), pad(packed.labels), packed.offsets, pad(packed.iscrowd), pad(packed.weights)
    )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
