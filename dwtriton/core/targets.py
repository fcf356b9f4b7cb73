"""Ground truth of a batch in packed tensors, whose shapes do not depend on how many boxes each image has."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.tensors import describe, is_dense
from dwtriton.core.transfer import to_device

FLOATS = (torch.float32, torch.float64)
BOX_FORMATS = {  # names of torchvision's tv_tensors.BoundingBoxFormat: corners from the two pairs of numbers
    "XYWH": lambda corner, sides: (corner, corner + sides),
    "CXCYWH": lambda centre, sides: (centre - sides / 2, centre + sides / 2),
}


class PackedTargets(NamedTuple):
    """Boxes of all images of a batch, one after another: image b owns the rows from `offsets[b]` to `offsets[b + 1]`.

    Rows from `offsets[-1]` on are padding. The order of an image's boxes matters: where two boxes of one class hold the
    same point, the last one decides its negative weight (docs/method.md#negative-weight).
    """

    boxes: Tensor  # (N, 4) float32 or float64, x1 y1 x2 y2 in pixels
    labels: Tensor  # (N,) int64, 0..C-1
    offsets: Tensor  # (B + 1,) int32
    iscrowd: Tensor | None = None  # (N,) bool, regions to ignore; None: there are none
    weights: Tensor | None = None  # (N,) float32 or float64, 0 or more (docs/method.md#weights-of-boxes); None: all 1

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return self.offsets.shape[0] - 1

    def to(self, device: torch.device | str) -> "PackedTargets":
        """Return the same targets on another device."""
        return PackedTargets._make(None if part is None else part.to(device) for part in self)

    def image_index(self) -> Tensor:
        """Return the image of each row, (N,) int64; B for padding."""
        rows = torch.arange(self.boxes.shape[0], device=self.offsets.device, dtype=self.offsets.dtype)
        return torch.searchsorted(self.offsets[1:].contiguous(), rows, right=True)

    def crowd_mask(self) -> Tensor:
        """Return which rows are regions to ignore, (N,) bool; padding is not."""
        if self.iscrowd is None:
            return torch.zeros_like(self.labels, dtype=torch.bool)
        return self.iscrowd & (self.image_index() < self.batch_size)

    def box_mask(self) -> Tensor:
        """Return which rows are ground truth, (N,) bool: neither padding nor crowd."""
        return (self.image_index() < self.batch_size) & ~self.crowd_mask()


def pack_targets(
    targets: Sequence[Mapping[str, Tensor]], device: torch.device | str, capacity: int | None = None
) -> PackedTargets:
    """Check the targets of a batch on the CPU and pack them on `device`; call it outside of a compiled graph.

    From the CPU the copies are asynchronous: the host does not wait for the device.

    `targets[b]` follows torchvision: `boxes` (G, 4) float32 or float64 xyxy in pixels, `labels` (G,) int64, and
    optionally `iscrowd` (G,) bool or integer, which turns a box into a region to ignore: it is no ground truth, and
    points inside it have no negative loss; and `weights` (G,) floats of 0 or more, 1 where absent, which multiply the
    positive losses of boxes (docs/method.md#weights-of-boxes). Other keys are allowed and unused. From torchvision's
    own pipelines `iscrowd` may be a list, and tv_tensors may hold boxes as XYWH or CXCYWH.

    With a `capacity` the tensors have that many rows in every batch, as CUDA graphs need. Without one, their first
    dimension is marked unbacked, so that one graph of `torch.compile` serves every number of boxes.
    Raises ValueError, naming image and index, for a wrong shape or dtype, a box that is not finite or whose
    x1 > x2 or y1 > y2, a negative label, a weight that is negative or not finite, and for more boxes than `capacity`.
    """
    if capacity is not None and (not isinstance(capacity, int) or isinstance(capacity, bool)):
        raise ValueError(f"capacity must be a number of boxes or None, not {capacity!r}")
    boxes, labels, offsets, iscrowd, weights = packed = concatenate_targets(targets, "cpu")
    check_values(packed)
    rows = [part for part in (boxes, labels, iscrowd, weights) if part is not None]
    if capacity is not None:
        added = capacity - len(labels)
        if added < 0:
            raise ValueError(
                f"{len(labels)} boxes in the batch, but a capacity of {capacity}; raise it to the most a batch holds"
            )
        rows = [torch.cat((tensor, tensor.new_zeros(added, *tensor.shape[1:]))) for tensor in rows]
    boxes, labels, *optional = rows = [to_device(tensor, device) for tensor in rows]
    if capacity is None:
        from torch._dynamo.decorators import mark_unbacked  # slow to import; only torch.compile needs it

        for tensor in rows:
            mark_unbacked(tensor, 0)
    return PackedTargets(boxes, labels, to_device(offsets, device), *optional)


def concatenate_targets(
    targets: Sequence[Mapping[str, Tensor]], device: torch.device | str | None = None
) -> PackedTargets:
    """Pack targets on `device` (default: that of the first boxes); check shapes and dtypes, but not values.

    Raises ValueError, naming the image.
    """
    if isinstance(targets, Mapping | Tensor) or not isinstance(targets, Sequence):
        raise ValueError(f"targets must be a list with one dict for each image, not {type(targets).__name__}")
    targets = [_as_tensors(image, target) for image, target in enumerate(targets)]
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
        given = [target.get("weights", torch.ones_like(target["labels"])) for target in targets]
        weights = torch.cat([weight.detach().to(device, dtype) for weight in given])
    return PackedTargets(
        torch.cat([torch.empty(0, 4, dtype=dtype, device=device), *boxes]),
        torch.cat([torch.empty(0, dtype=torch.int64, device=device), *labels]),
        torch.tensor(counts).cumsum(0).to(device, torch.int32, non_blocking=True),
        torch.cat([torch.empty(0, dtype=torch.bool, device=device), *crowds]),
        weights,
    )


def check_packed(packed: PackedTargets) -> None:
    """Raise ValueError unless shapes, dtypes and devices of packed targets fit together; values are not read."""
    boxes, labels, offsets, iscrowd, weights = packed
    fit = _is_tensor(boxes) and boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.dtype in FLOATS
    _require(fit, "packed boxes", "(N, 4) float32 or float64", boxes)
    fit = _is_tensor(labels) and labels.ndim == 1 and labels.dtype == torch.int64
    _require(fit, "packed labels", "(N,) int64", labels)
    fit = _is_tensor(offsets) and offsets.ndim == 1 and offsets.shape[0] > 0 and offsets.dtype == torch.int32
    _require(fit, "packed offsets", "(B + 1,) int32", offsets)
    fit = iscrowd is None or (_is_tensor(iscrowd) and iscrowd.ndim == 1 and iscrowd.dtype == torch.bool)
    _require(fit, "packed iscrowd", "(N,) bool", iscrowd)
    fit = weights is None or (_is_tensor(weights) and weights.ndim == 1 and weights.dtype in FLOATS)
    _require(fit, "packed weights", "(N,) float32 or float64", weights)
    parts = [part for part in (boxes, labels, iscrowd, weights) if part is not None]
    if torch.compiler.is_compiling():  # numbers of rows are unknown yet: let the graph check them when it runs
        for part in parts:
            torch._check(part.shape[0] == boxes.shape[0])
    elif len({len(part) for part in parts}) != 1:
        raise ValueError(f"packed targets must have equally many rows, not {[len(part) for part in parts]}")
    devices = {str(part.device) for part in (*parts, offsets)}
    if len(devices) != 1:
        raise ValueError(f"packed targets must lie on one device, not {sorted(devices)}; pack_targets sees to that")


def check_values(packed: PackedTargets, num_classes: int | None = None) -> None:
    """Raise ValueError, naming image and index, for a value out of range. It reads values: for CPU tensors."""
    boxes, labels, offsets, _, weights = packed
    if offsets[0] != 0 or (offsets.diff() < 0).any() or offsets[-1] > len(labels):
        raise ValueError(f"packed offsets must rise from 0 to at most {len(labels)}, not {offsets.tolist()}")
    image = packed.image_index()
    used = image < packed.batch_size
    problems = {
        "coordinates must be finite": ~boxes.isfinite().all(1),
        "boxes are x1 y1 x2 y2 in pixels with x1 <= x2 and y1 <= y2": (boxes[:, :2] > boxes[:, 2:]).any(1),
        "labels start at 0": labels < 0,
    }
    if weights is not None:
        problems["weights must be finite and at least 0"] = ~(weights.isfinite() & (weights >= 0))
    if num_classes is not None:
        problems[f"labels must be below the number of classes, {num_classes}"] = labels >= num_classes
    for problem, bad in problems.items():
        if (bad & used).any():
            row = int((bad & used).nonzero()[0])
            where = f"image {int(image[row])}, box {row - int(offsets[image[row]])}"
            raise ValueError(f"targets, {where}: box {boxes[row].tolist()} label {int(labels[row])}: {problem}")


def _as_tensors(image: int, target: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a target with `iscrowd` as a tensor, where torchvision has a list, and with boxes as xyxy.

    torchvision's tv_tensors say by their `format` what boxes are; all others are taken to be xyxy.
    Raises ValueError, naming the image, for the format of rotated boxes.
    """
    if not isinstance(target, Mapping):
        return target
    changes = {}
    if isinstance(target.get("iscrowd"), Sequence):
        try:
            changes["iscrowd"] = torch.tensor(target["iscrowd"]).reshape(-1).bool()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"targets, image {image}: iscrowd cannot be made a tensor: {error}") from None
    form = getattr(getattr(target.get("boxes"), "format", None), "name", "XYXY")
    if form in BOX_FORMATS:
        pairs = target["boxes"].as_subclass(Tensor).split(2, dim=-1)
        changes["boxes"] = torch.cat(BOX_FORMATS[form](*pairs), dim=-1)
    elif form != "XYXY":
        raise ValueError(f"targets, image {image}: boxes are {form}, not upright ones (XYXY, {', '.join(BOX_FORMATS)})")
    return {**target, **changes} if changes else target


def _check_target(image: int, target: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the image, for a missing key, a wrong shape or a wrong dtype."""
    where = f"targets, image {image}: "
    if not isinstance(target, Mapping):
        raise ValueError(f"{where}expected a dict with boxes and labels, not {type(target).__name__}")
    for name in ("boxes", "labels"):
        if not isinstance(target.get(name), Tensor):
            raise ValueError(f"{where}{name!r} is missing or not a tensor")
        _require(is_dense(target[name]), where + name, "a dense tensor", target[name])
    boxes, labels = target["boxes"], target["labels"]
    crowd = target.get("iscrowd", labels)
    fit = boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.dtype in FLOATS
    _require(fit, where + "boxes", "(G, 4) float32 or float64 pixels, torch.zeros(0, 4) if there are none", boxes)
    fit = labels.shape == boxes.shape[:1] and labels.dtype == torch.int64
    _require(fit, where + "labels", f"({len(boxes)},) int64", labels)
    fit = isinstance(crowd, Tensor) and crowd.shape == labels.shape and not crowd.is_floating_point()
    _require(fit, where + "iscrowd", f"({len(boxes)},) bool or integer", crowd)
    weights = target.get("weights", boxes[:, 0])
    fit = isinstance(weights, Tensor) and weights.shape == labels.shape and weights.is_floating_point()
    _require(fit, where + "weights", f"({len(boxes)},) floating point", weights)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and is_dense(value)


def _require(fit: bool, name: str, form: str, value: object) -> None:
    """Raise ValueError, with shape and dtype of a tensor or the type of anything else, unless `fit`."""
    if not fit:
        raise ValueError(f"{name} must be {form}, not {describe(value)}")
