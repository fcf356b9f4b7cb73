"""Detection data in COCO format as a torch data set."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from torch.utils.data import Dataset
from torchvision.ops import box_convert

from dwtriton.config.schema import DataConfig, InferenceConfig
from dwtriton.data.annotations import read_annotations
from dwtriton.data.buckets import Size, fits, padded_size
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.data.layout import Split, layout_error, split_paths
from dwtriton.data.problems import DataError, DataProblems
from dwtriton.data.transforms import draw_augmentation, resized_size, transform

MIN_IMAGE_SIDE = 32  # pixels; smaller images are left out of training (recipe, section Data)


class SampleRequest(NamedTuple):
    """What a sampler asks of a data set."""

    index: int
    seed: int = 0  # decides the augmentation, and nothing else does
    padded: Size | None = None  # what the batch will be padded to; None: as its images need it


@dataclass
class Sample:
    """One image, ready for a batch. `image` is None if no file could be read; `broken` says why."""

    image: torch.Tensor | None  # uint8 [3, h, w]
    target: dict[str, torch.Tensor]  # boxes float32 [G, 4] xyxy network pixels, labels int64 [G], perhaps iscrowd [G]
    image_id: int
    path: str
    scale_factor: tuple[float, float]  # (sx, sy), network pixels per original pixel
    broken: list[str] = field(default_factory=list)  # "PATH: reason", the files that could not be read
    padded: Size | None = None  # as the request asked for it


class CocoDataset(Dataset):
    """One split of a data set in COCO format (recipe, section Data).

    `"train"` leaves out images without a usable box or with a side under 32 pixels, and augments; `"val"` keeps every
    image whose file exists. Boxes that are crowd, have no area or a side under 1 pixel are dropped from the targets;
    with `keep_crowd` the crowd boxes stay, and targets mark them in `"iscrowd"` (G,) bool. `inference` has the size of
    the images in `"val"`.

    Public attributes: `class_names` and `category_ids` (by label 0..C-1, in the order of the sorted category ids),
    `landscape` (bool array, item wider than high), `aspects` (height / width of each item), `image_ids` and `paths` of
    the items, `report` (what was left out, why), `info` (of the annotation file), `fingerprint` (of items and targets),
    and of the `"val"` split `coco` (pycocotools' COCO, the ground truth for COCOeval).

    Items are addressed by `index` or by the fields of a `SampleRequest`.
    Raises DataError if the files cannot be used.
    """

    def __init__(
        self,
        cfg: DataConfig,
        split: Split,
        keep_crowd: bool = False,
        inference: InferenceConfig | None = None,
    ) -> None:
        self.cfg, self.inference = cfg, inference or InferenceConfig()
        self.training = split == "train"
        self.keep_crowd = keep_crowd
        self.problems = DataProblems()
        paths = split_paths(cfg, split)
        coco = read_annotations(paths.annotations, self.problems)
        self.info: dict[str, Any] = coco.dataset["info"]
        if not self.training:
            self.coco = coco
        categories = sorted(coco.dataset["categories"], key=lambda category: category["id"])
        self.category_ids: list[int] = [category["id"] for category in categories]
        self.class_names: list[str] = [category["name"] for category in categories]

        targets = self._targets(coco)
        images = self._with_file(coco, paths.images)
        if not images:
            raise layout_error(cfg, f"none of the images of {paths.annotations} is in {paths.images}", (split,))
        if self.training:
            images = [image for image in images if self._trainable(image, targets[image["id"]])]
        if not images:
            raise DataError(f"{paths.annotations}: no image is left; {'; '.join(self.problems.summary())}")
        self._targets_by_item = [targets[image["id"]] for image in images]
        self.paths = [str(paths.images / image["file_name"]) for image in images]
        self.image_ids: list[int] = [image["id"] for image in images]
        self._sizes = np.array([(image["height"], image["width"]) for image in images])  # [N, 2]
        self.landscape = self._sizes[:, 1] > self._sizes[:, 0]
        self.aspects = self._sizes[:, 0] / self._sizes[:, 1]
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int | tuple) -> Sample:
        """The sample. If its file is broken, training takes the next item of the same orientation that is not."""
        request = SampleRequest(*item) if isinstance(item, tuple) else SampleRequest(item)
        broken: list[str] = []
        for candidate in self._candidates(request):
            try:
                return self._sample(candidate, broken)
            except BrokenImageError as error:
                broken.append(str(error))
        index = request.index
        return Sample(None, {}, self.image_ids[index], self.paths[index], (1.0, 1.0), broken, request.padded)

    def network_size(self, request: SampleRequest) -> Size:
        """(h, w) of an item in the network, before padding."""
        short_side, long_side, _ = self._augmentation(request)
        return resized_size(*self._sizes[request.index].tolist(), short_side, long_side)

    def padded_size(self, requests: Iterable[SampleRequest]) -> Size:
        """(h, w) that a batch of these requests is padded to: multiples of the divisor in which its images fit."""
        return padded_size((self.network_size(request) for request in requests), self.cfg.size_divisor)

    def largest_sizes(self) -> list[Size]:
        """The largest (h, w) that a batch of either orientation can be padded to."""
        high, limit = (
            (self.cfg.short_side[1], self.cfg.long_side)
            if self.training
            else (self.inference.short_side, self.inference.long_side)
        )
        groups = [self._sizes[self.landscape == wide].tolist() for wide in (False, True)]
        return [
            padded_size((resized_size(*size, high, limit) for size in group), self.cfg.size_divisor)
            for group in groups
            if group
        ]

    def box_count(self, index: int) -> int:
        """Boxes in the targets of an item."""
        return len(self._targets_by_item[index]["labels"])

    def most_boxes(self, images: int) -> int:
        """The most boxes, crowd regions among them, that so many images of a batch can have together.

        One image may stand for all: few of an orientation repeat, and unreadable files have others in their place.
        """
        return images * max(map(self.box_count, range(len(self))))

    def _augmentation(self, request: SampleRequest) -> tuple[int, int, bool]:
        """Limits of the short and of the long side in pixels, and whether to flip."""
        if not self.training:
            return self.inference.short_side, self.inference.long_side, False
        short_side, flipped = draw_augmentation(self.cfg, request.seed)
        return short_side, self.cfg.long_side, flipped

    def _candidates(self, request: SampleRequest) -> Iterator[SampleRequest]:
        """The request itself; in training then the others of its orientation that fit, in the order that follows it."""
        yield request
        if not self.training:
            return
        following = np.roll(np.arange(len(self)), -request.index)[1:]
        for index in following[self.landscape[following] == self.landscape[request.index]].tolist():
            candidate = request._replace(index=index)
            if request.padded is None or fits(self.network_size(candidate), request.padded):
                yield candidate

    def _sample(self, request: SampleRequest, broken: list[str]) -> Sample:
        index = request.index
        height, width = self._sizes[index].tolist()
        image = read_image(Path(self.paths[index]), (height, width))
        target = {key: torch.from_numpy(value.copy()) for key, value in self._targets_by_item[index].items()}
        augmentation = self._augmentation(request)
        image, target["boxes"], scale_factor = transform(image, target["boxes"], self.cfg, *augmentation)
        return Sample(image, target, self.image_ids[index], self.paths[index], scale_factor, broken, request.padded)

    def _fingerprint(self) -> str:
        """Differs for other images, in another order or of another size, and for other targets."""
        digest = hashlib.sha256(repr((self.image_ids, self._sizes.tolist())).encode())
        for target in self._targets_by_item:
            for array in target.values():
                digest.update(array.tobytes())
        return digest.hexdigest()[:12]

    def _targets(self, coco: COCO) -> dict[int, dict[str, np.ndarray]]:
        """Targets in original pixels, by image id; images without a usable box have empty ones."""
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        usable = defaultdict(list)
        for annotation in coco.dataset["annotations"]:
            if self._usable(annotation, coco.imgs[annotation["image_id"]]["file_name"]):
                usable[annotation["image_id"]].append(annotation)
        targets = {}
        for image_id in coco.imgs:
            chosen = usable[image_id]
            xywh = torch.tensor([a["bbox"] for a in chosen], dtype=torch.float32).reshape(-1, 4)
            targets[image_id] = {
                "boxes": box_convert(xywh, "xywh", "xyxy").numpy(),
                "labels": np.array([label_of[a["category_id"]] for a in chosen], dtype=np.int64),
            }
            if self.keep_crowd:
                targets[image_id]["iscrowd"] = np.array([bool(a["iscrowd"]) for a in chosen], dtype=bool)
        return targets

    def _usable(self, annotation: dict[str, Any], image: str) -> bool:
        width, height = annotation["bbox"][2:]
        if annotation["area"] <= 0 or width < 1 or height < 1:
            kind = "box without area or under 1 pixel, not used as a target"
            self.problems.add(kind, f"annotation {annotation['id']} of image {annotation['image_id']} ({image})")
            return False
        return self.keep_crowd or not annotation["iscrowd"]

    def _with_file(self, coco: COCO, folder: Path) -> list[dict[str, Any]]:
        kind = "image file missing, image skipped"
        if not self.training:
            kind += ", but its ground truth still counts"
        images = []
        for image in coco.dataset["images"]:
            if (folder / image["file_name"]).is_file():
                images.append(image)
            else:
                self.problems.add(kind, str(folder / image["file_name"]))
        return images

    def _trainable(self, image: dict[str, Any], target: dict[str, np.ndarray]) -> bool:
        if min(image["width"], image["height"]) < MIN_IMAGE_SIDE:
            self.problems.add(f"image with a side under {MIN_IMAGE_SIDE} pixels, not trained on", image["file_name"])
            return False
        if np.count_nonzero(~target["iscrowd"]) if self.keep_crowd else len(target["boxes"]):
            return True
        self.problems.add("image without a usable box, not trained on", image["file_name"])
        return False
