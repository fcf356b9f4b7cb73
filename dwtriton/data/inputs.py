"""Images and videos that somebody names on a command line: files, folders, globs."""

import glob
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dwtriton.config import DataConfig
from dwtriton.data.coco import Example
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.data.transforms import transform
from dwtriton.errors import UserError

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


def find_inputs(names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """(images, videos) behind files, folders (searched through) and globs, each once, in the order given.

    A file of another suffix that is named itself counts as an image. Raises UserError for a name behind which is none.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGES | VIDEOS]
        elif path.is_file():
            files = [path]
        else:
            files = [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]
        if not files:
            raise UserError(f"{name} is neither an image, a video, a folder with some, nor a pattern that matches any")
        found |= dict.fromkeys(files)
    videos = [path for path in found if path.suffix.lower() in VIDEOS]
    return [path for path in found if path not in videos], videos


def test_example(image: Tensor, cfg: DataConfig, number: int, path: str) -> Example:
    """An image, uint8 [3, h, w], resized as in testing, without ground truth."""
    nothing = torch.zeros(0, 4)
    resized, boxes, scale_factor = transform(image, nothing, cfg, cfg.test_short_side, cfg.test_long_side)
    target = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64)}
    return Example(resized, target, number, path, scale_factor)


class ImageFiles(Dataset):
    """Examples of image files, by their number; `image` is None and `broken` says why where one cannot be read."""

    def __init__(self, paths: Sequence[Path], cfg: DataConfig) -> None:
        self.paths, self.cfg = paths, cfg

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Example:
        path = self.paths[number]
        try:
            return test_example(read_image(path), self.cfg, number, str(path))
        except BrokenImageError as error:
            return Example(None, {}, number, str(path), (1.0, 1.0), [str(error)])
