"""Detection in images that are too large for the network: in overlapping tiles, whose detections are merged."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from dwtriton.core.errors import UserError
from dwtriton.data.formats.tiles import MIN_SIZE, tile_offsets
from dwtriton.inference.inputs import unlabelled_sample
from dwtriton.inference.ready import ReadyDetector

AT_BORDER = 0.01  # of a tile's side: a box that ends so near to where the image goes on was probably cut there
COVERED = 0.5  # of a box that was cut: with more inside a box of its class, it is a part of that


class Tiling(NamedTuple):
    """How images are cut; `overlap` is the least share of a tile's side that neighbours have in common."""

    size: int  # of a tile's sides, pixels
    overlap: float = 0.2

    def check(self) -> None:
        """Raise UserError for sizes that make no sense."""
        if self.size < MIN_SIZE:
            raise UserError(f"--tile is at least {MIN_SIZE} pixels, not {self.size}")
        if not 0 <= self.overlap < 1:
            raise UserError(f"--overlap is a share of a tile's side from 0 up to 1, such as 0.2, not {self.overlap:g}")

    def rectangles(self, height: int, width: int) -> Tensor:
        """Return the tiles of an image, (T, 4) float xyxy in pixels."""
        rows, columns = (tile_offsets(length, self.size, self.overlap) for length in (height, width))
        found = [(x, y, min(x + self.size, width), min(y + self.size, height)) for y in rows for x in columns]
        return torch.tensor(found, dtype=torch.float32)


def detect_in_tiles(ready: ReadyDetector, pixels: Tensor, tiling: Tiling, batch_size: int = 8) -> dict[str, Tensor]:
    """Return the detections of an image, uint8 [3, h, w], in its pixels: `boxes`, `scores` and `labels`, by score.

    An object that is no longer than the overlap is whole in some tile. Longer ones are looked for in the whole image,
    too. `inference.max_detections` holds for each tile, not for all of them together.
    """
    height, width = pixels.shape[1:]
    tiles = tiling.rectangles(height, width)
    whole = torch.tensor([[0.0, 0, width, height]])
    places = torch.cat([tiles, whole]) if len(tiles) > 1 else tiles  # (T, 4)
    samples = (
        unlabelled_sample(pixels[:, y1:y2, x1:x2].contiguous(), ready.config, index, "")
        for index, (x1, y1, x2, y2) in enumerate(places.int().tolist())
    )
    parts = []
    for sample, found in ready.detect(samples, batch_size):
        index = int(sample.image_id)
        boxes = found["boxes"] + places[index, :2].repeat(2)
        longest = (boxes[:, 2:] - boxes[:, :2]).amax(1)
        kept = longest > tiling.overlap * tiling.size if index == len(tiles) else torch.ones(len(boxes)).bool()
        cut = _is_cut(boxes, places[index], (height, width), AT_BORDER * tiling.size)
        parts.append([values[kept] for values in (boxes, found["scores"], found["labels"], cut)])
    boxes, scores, labels, cut = map(torch.cat, zip(*parts))
    best = merge(boxes, scores, labels, cut, ready.config.inference.nms_iou)
    return {"boxes": boxes[best], "scores": scores[best], "labels": labels[best]}


def merge(boxes: Tensor, scores: Tensor, labels: Tensor, cut: Tensor, nms_iou: float) -> Tensor:
    """Return the indices of the boxes (N, 4) to keep, highest-scoring first; `cut` (N,) bool: at the seam of a tile.

    Whole boxes pass NMS within their class. A cut one is kept unless more than half of it lies in one that is kept
    already: the whole ones first, then the cut ones by score.
    """
    whole = (~cut).nonzero()[:, 0]
    kept = whole[batched_nms(boxes[whole], scores[whole], labels[whole], nms_iou)]
    for index in cut.nonzero()[:, 0][scores[cut].argsort(descending=True, stable=True)]:
        same = kept[labels[kept] == labels[index]]
        if not (_covered(boxes[index], boxes[same]) > COVERED).any():
            kept = torch.cat([kept, index[None]])
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _is_cut(boxes: Tensor, tile: Tensor, size: tuple[int, int], margin: float) -> Tensor:
    """Return which boxes end at a side of their tile behind which the image of (h, w) goes on."""
    height, width = size
    inner = torch.stack([tile[0] > 0, tile[1] > 0, tile[2] < width, tile[3] < height])
    return (((boxes - tile).abs() <= margin) & inner).any(1)


def _covered(box: Tensor, others: Tensor) -> Tensor:
    """Return which share of a box (4,) lies in each of the others (N, 4)."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    return (high - low).clamp(min=0).prod(1) / (box[2:] - box[:2]).prod().clamp(min=1e-9)
