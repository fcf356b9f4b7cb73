"""Detection data in COCO format as a torch data set."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from torch.utils.data import Dataset
from torchvision.ops import box_convert

from dwtriton.config.schema import DataConfig, InferenceConfig
from dwtriton.core.text import first_of, nearest
from dwtriton.data.annotations import Records, read_valid_records
from dwtriton.data.buckets import Size, fits, padded_size
from dwtriton.data.classes import match_classes
from dwtriton.data.fingerprint import fingerprint
from dwtriton.data.images import (
    BrokenImageError,
    change_colours,
    draw_augmentation,
    flip,
    read_image,
    resize,
    resized_size,
)
from dwtriton.data.problems import DataError, DataProblems
from dwtriton.data.usable import check_measurable, choose_usable
from dwtriton.data.values import Id

SplitName = Literal["train", "val"]
MAX_COCO_ID = 2**53  # of annotations: COCOeval keeps those of matches as float64, and reads 0 as none


class SampleRequest(NamedTuple):
    """One sample that a sampler asks of a data set."""

    index: int
    seed: int = 0  # decides the augmentation
    padded: Size | None = None  # (h, w) that its batch will be padded to; None: as its images need it
    scale_seed: int | None = None  # decides the scale instead, where a batch has one


@dataclass
class Sample:
    """One image with its targets, ready for a batch. If no file could be read, `image` is None."""

    image: torch.Tensor | None  # uint8 [3, h, w]
    target: dict[str, torch.Tensor]  # boxes float32 [G, 4] xyxy network pixels, labels int64 [G]; iscrowd, weights [G]
    image_id: Id
    path: str
    scale_factor: tuple[float, float]  # (sx, sy), network pixels per original pixel
    broken: list[str] = field(default_factory=list)  # "PATH: reason" for each file that could not be read
    padded: Size | None = None  # of its request


class CocoDataset(Dataset):
    """One split of a data set in COCO format (docs/recipe.md#data).

    `"train"` augments, and leaves out images with a side under 32 pixels or without a usable box, but for those without
    an annotation if `cfg.background`; `"val"` keeps every image whose file exists, at the size that `inference` states.
    Boxes without area or with a side under 1 pixel are no targets. Crowd boxes are none either; if `cfg.crowd` is
    "ignore", targets mark them in `"iscrowd"` (G,) bool. If any box to train on has a weight other than 1, of its own
    or of its class, all targets have `"weights"` (G,) float32. Labels are the positions of names in `classes`, by
    default those of the file. `records` are those of the annotation file where it was read already; they are changed.

    Public attributes: `class_names` and `category_ids` (by label 0..C-1; without `classes` in the order of the sorted
    category ids), `landscape` (bool array, item wider than high), `aspects` (height / width of each item), `image_ids`
    and `paths` of the items, `problems` (what was left out, and why), `path` and `info` (of the annotation file),
    `fingerprint` (of items and targets), `weighted` (whether targets have weights), and of the `"val"` split `coco`
    (pycocotools' COCO, the ground truth for COCOeval).

    Items are addressed by `index` or by the fields of a `SampleRequest`.
    Raises DataError if the files cannot be used or, for `"train"`, lack a class of `cfg.class_weights`.
    """

    def __init__(
        self,
        cfg: DataConfig,
        split: SplitName,
        inference: InferenceConfig | None = None,
        classes: Sequence[str] | None = None,
        records: Records | None = None,
    ) -> None:
        self.training = split == "train"
        if not self.training:
            test = inference or InferenceConfig()
            fixed = {"short_side": (test.short_side,) * 2, "long_side": test.long_side}
            fixed |= {"flip": 0.0, "vertical_flip": 0.0, "colour": 0.0}
            cfg = cfg.model_copy(update=fixed)
        self.problems = DataProblems()
        folder = cfg.root / getattr(cfg, f"{split}_images")
        records = records or read_valid_records(cfg.root / getattr(cfg, f"{split}_annotations"))
        if classes is not None:
            records = match_classes(records, classes, self.problems)
        self.path = records.path
        usable = choose_usable(records, folder, self.training, self.problems, cfg)
        self.cfg = cfg.model_copy(update={"exif": usable.exif})  # with the sizes of this split
        self.info = records.info
        if not self.training:
            self.coco = _ground_truth(records, usable.annotations)
        self.class_names = list(records.class_names.values() if classes is None else classes)
        id_of = {name: id_ for id_, name in records.class_names.items()}
        self.category_ids: list[Id] = [id_of[name] for name in self.class_names]
        self.image_ids: list[Id] = [image["id"] for image in usable.images]
        self.paths = [str(folder / image["file_name"]) for image in usable.images]
        label_of = {category_id: label for label, category_id in enumerate(self.category_ids)}
        class_weights = _class_weights(cfg.class_weights if self.training else {}, self.class_names, records.path)
        self._targets = [
            _to_target(usable.boxes[image_id], label_of, class_weights, cfg.crowd == "ignore")
            for image_id in self.image_ids
        ]
        self.weighted = any((target["weights"] != 1).any() for target in self._targets)
        if not self.weighted:
            for target in self._targets:
                del target["weights"]
        self._sizes = np.array([(image["height"], image["width"]) for image in usable.images])  # [N, 2]
        self.landscape = self._sizes[:, 1] > self._sizes[:, 0]
        self.aspects = self._sizes[:, 0] / self._sizes[:, 1]
        self.fingerprint = fingerprint(self.image_ids, self._sizes, self._targets)

    def __len__(self) -> int:
        return len(self.paths)

    def check_measurable(self) -> None:
        """Raise DataError unless the `"val"` split has an object to measure a detector by."""
        check_measurable(self.path, self.coco.anns.values(), self.problems)

    def __getitem__(self, item: int | tuple) -> Sample:
        """Load a sample. In training, the next item of the same orientation that can be read replaces a broken one."""
        request = SampleRequest(*item) if isinstance(item, tuple) else SampleRequest(item)
        broken: list[str] = []
        for index in self._candidates(request):
            try:
                image = self.read(index)
            except BrokenImageError as error:
                broken.append(str(error))
                continue
            target = {key: torch.from_numpy(value.copy()) for key, value in self._targets[index].items()}
            short_side, flipped_sides = draw_augmentation(self.cfg, request.seed, request.scale_seed)
            limits = short_side, self.cfg.long_side
            if not self._fits(request._replace(index=index)):  # a replacement that has to become smaller
                limits = request.padded if self.landscape[index] else request.padded[::-1]
            image, target["boxes"], scale_factor = resize(image, target["boxes"], *limits)
            for side in flipped_sides:
                image, target["boxes"] = flip(image, target["boxes"], side)
            if self.cfg.colour:
                image = change_colours(image, self.cfg.colour, request.seed)
            return Sample(image, target, self.image_ids[index], self.paths[index], scale_factor, broken, request.padded)
        index = request.index
        return Sample(None, {}, self.image_ids[index], self.paths[index], (1.0, 1.0), broken, request.padded)

    def read(self, index: int) -> torch.Tensor:
        """Decode the image of an item, turned as its annotations are. Raises BrokenImageError."""
        return read_image(
            Path(self.paths[index]), tuple(self._sizes[index].tolist()), self.cfg.exif, self.cfg.max_pixels
        )

    def network_size(self, request: SampleRequest) -> Size:
        """(h, w) of an item in the network, before padding."""
        short_side, _ = draw_augmentation(self.cfg, request.seed, request.scale_seed)
        return resized_size(*self._sizes[request.index].tolist(), short_side, self.cfg.long_side)

    def padded_size(self, requests: Iterable[SampleRequest]) -> Size:
        """(h, w) that a batch of these requests needs: the smallest multiples of the divisor that hold its images."""
        return padded_size((self.network_size(request) for request in requests), self.cfg.size_divisor)

    def largest_sizes(self) -> list[Size]:
        """The largest (h, w) that batches of either orientation can need."""
        limits = self.cfg.short_side[1], self.cfg.long_side
        groups = [self._sizes[self.landscape == wide].tolist() for wide in (False, True)]
        resized = [[resized_size(*size, *limits) for size in group] for group in groups]
        return [padded_size(sizes, self.cfg.size_divisor) for sizes in resized if sizes]

    def box_count(self, index: int) -> int:
        """Boxes in the targets of an item."""
        return len(self._targets[index]["labels"])

    def most_boxes(self, images: int) -> int:
        """The most boxes, crowd regions included, that `images` images of a batch can have together.

        All may be the same image: a small group of one orientation repeats, and so do replacements of broken files.
        """
        return images * max(map(self.box_count, range(len(self))))

    def _candidates(self, request: SampleRequest) -> Iterator[int]:
        """Yield the index itself; in training, then the following ones of its orientation, first those that fit."""
        yield request.index
        if not self.training:
            return
        following = np.roll(np.arange(len(self)), -request.index)[1:]
        following = following[self.landscape[following] == self.landscape[request.index]].tolist()
        fitting = [index for index in following if self._fits(request._replace(index=index))]
        yield from fitting
        yield from set(following) - set(fitting)

    def _fits(self, request: SampleRequest) -> bool:
        """Whether an item fits into the batch of its request."""
        return request.padded is None or fits(self.network_size(request), request.padded)


def _class_weights(given: dict[str, float], names: list[str], path: Path) -> np.ndarray:
    """Weights of all classes by label, float32 [C]. Raises DataError for a name that is no class."""
    unknown = [f"{name!r}{nearest(name, names, cutoff=0.0)}" for name in given if name not in names]
    if unknown:
        raise DataError(f"data.class_weights: {path} has no class {first_of(unknown)}")
    return np.array([given.get(name, 1) for name in names], dtype=np.float32)


def _to_target(
    boxes: list[dict[str, Any]], label_of: dict[Id, int], class_weights: np.ndarray, keep_crowd: bool
) -> dict[str, np.ndarray]:
    """Boxes [G, 4] xyxy in original pixels, labels [G], weights [G] and, with `keep_crowd`, iscrowd [G]."""
    boxes = [box for box in boxes if keep_crowd or not box["iscrowd"]]
    xywh = torch.tensor([box["bbox"] for box in boxes], dtype=torch.float32).reshape(-1, 4)
    labels = np.array([label_of[box["category_id"]] for box in boxes], dtype=np.int64)
    target = {
        "boxes": box_convert(xywh, "xywh", "xyxy").numpy(),
        "labels": labels,
        "weights": np.array([box["weight"] for box in boxes], dtype=np.float32) * class_weights[labels],
    }
    if keep_crowd:
        target["iscrowd"] = np.array([bool(box["iscrowd"]) for box in boxes], dtype=bool)
    return target


def _ground_truth(records: Records, annotations: list[dict[str, Any]]) -> COCO:
    """The object that COCOeval reads, made without printing."""
    ids = [annotation["id"] for annotation in annotations]
    if not all(isinstance(id_, int) and 0 < id_ <= MAX_COCO_ID for id_ in ids):
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
    coco = COCO()
    coco.dataset = {
        "info": records.info,
        "images": list(records.images.values()),
        "annotations": annotations,
        "categories": list(records.categories.values()),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
