"""The head's outputs and the ground truth as kernels take them: every level where it lies, all memory dense."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dwtriton.core.targets import PackedTargets
from dwtriton.kernels.tuning import DenseConfig

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SPLITS = 4  # programs that share a box, and parts of its statistics
MAX_IMAGES = 65535  # one dimension of a grid
INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1 was set: kernels run slowly, on CPU tensors


# Of a thread, by bytes of a logit: sixteen and twelve warps fit on a multiprocessor, where the compiler left to itself
# may end with eight. In float32, with twice the bytes in flight, twelve will do; with 128 some GPUs' backward spills.
MAX_REGISTERS = {2: 128, 4: 144}


class Pyramid(NamedTuple):
    """Levels from the finest to the coarsest. Each kind has one dtype and one layout, channels_last or contiguous."""

    z: tuple[Tensor, ...]  # class logits, [B, C, H, W]
    d: tuple[Tensor, ...]  # distances, [B, 4, H, W]
    u: tuple[Tensor, ...]  # objectness logits, [B, 1, H, W]
    heights: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[float, ...]
    z_last: bool  # z is channels_last
    d_last: bool

    @property
    def batch(self) -> int:
        return self.z[0].shape[0]

    @property
    def num_classes(self) -> int:
        return self.z[0].shape[1]

    @property
    def arguments(self) -> tuple[tuple[Tensor, ...] | tuple[float, ...], ...]:
        """The first arguments of every kernel: logits, distances, objectness logits, heights, widths and strides.

        Sizes are floats: as integers in tuples they would compile the kernels anew.
        """
        return self.z, self.d, self.u, tuple(map(float, self.heights)), tuple(map(float, self.widths)), self.strides

    @property
    def points(self) -> int:
        """Points of one image."""
        return sum(height * width for height, width in zip(self.heights, self.widths))

    def tiles(self, tile_height: int, tile_width: int) -> int:
        """Tiles that cover the levels of one image."""
        return sum(-(-h // tile_height) * -(-w // tile_width) for h, w in zip(self.heights, self.widths))


class Boxes(NamedTuple):
    """Packed targets; rows from `offsets[B]` on are padding."""

    corners: Tensor  # [N, 4] float32 xyxy
    labels: Tensor  # [N] int64
    iscrowd: Tensor  # [N] uint8
    offsets: Tensor  # [B + 1] int32


def read_pyramid(
    cls_logits: Sequence[Tensor], box_distances: Sequence[Tensor], objectness: Sequence[Tensor], strides: Sequence[int]
) -> Pyramid:
    """The levels without a copy where each kind is channels_last or contiguous and of one dtype, else dense copies.

    Raises ValueError for other dtypes than float32, float16 and bfloat16, and for more than one launch can address.
    """
    for level in (*cls_logits, *box_distances, *objectness):
        if level.dtype not in DTYPES:
            raise ValueError(f'the kernels take float32, float16 and bfloat16; for {level.dtype} use backend="torch"')
    batch, num_classes = cls_logits[0].shape[:2]
    points = sum(level.shape[2] * level.shape[3] for level in cls_logits)
    if points * max(num_classes, 4) >= 2**31 or points >= 2**24:
        raise ValueError(
            f"{points} points with {num_classes} classes in an image are more than the kernels can address"
        )
    if batch > MAX_IMAGES:
        raise ValueError(f"{batch} images in a batch; the kernels take {MAX_IMAGES}")
    z, z_last = _dense(cls_logits)
    d, d_last = _dense(box_distances)
    u, _ = _dense(objectness)
    heights, widths = zip(*(level.shape[2:] for level in z))
    return Pyramid(z, d, u, heights, widths, tuple(float(stride) for stride in strides), z_last, d_last)


def read_boxes(targets: PackedTargets) -> Boxes:
    """The targets, with crowd flags whether or not they were given. Raises ValueError for 2^24 boxes or more."""
    if targets.labels.shape[0] >= 2**24:
        raise ValueError(f"{targets.labels.shape[0]} boxes in the batch; the kernels take less than 2^24")
    iscrowd = targets.iscrowd
    if iscrowd is None:
        iscrowd = torch.zeros_like(targets.labels, dtype=torch.bool)
    return Boxes(
        targets.boxes.float().contiguous(),
        targets.labels.contiguous(),
        iscrowd.contiguous().view(torch.uint8),
        targets.offsets.contiguous(),
    )


def launch_options(pyramid: Pyramid, soft_prior: bool, warps: int) -> dict[str, int | bool]:
    """The constants and options of every kernel that reads a pyramid. Why without fusion: see `formulas.py`."""
    constants = {"NUM_CLASSES": pyramid.num_classes, "Z_LAST": pyramid.z_last, "D_LAST": pyramid.d_last}
    options = {"SOFT": soft_prior, "SPLITS": SPLITS, "num_warps": warps, "enable_fp_fusion": False}
    limit = {} if torch.version.hip else {"maxnreg": MAX_REGISTERS[pyramid.z[0].element_size()]}
    return constants | options | limit


def dense_options(pyramid: Pyramid, soft_prior: bool, config: DenseConfig) -> dict[str, int | bool]:
    """The same for the kernels whose programs own a tile."""
    tile = {"TILE_H": config.tile_height, "TILE_W": config.tile_width, "BLOCK_C": config.classes}
    return launch_options(pyramid, soft_prior, config.warps) | tile


def _dense(levels: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], bool]:
    """The levels of one kind, and whether they are channels_last."""
    dtype = reduce(torch.promote_types, {level.dtype for level in levels})
    levels = tuple(level.detach().to(dtype) for level in levels)
    if all(level.is_contiguous(memory_format=torch.channels_last) for level in levels):
        return levels, True
    return tuple(level.contiguous() for level in levels), False
