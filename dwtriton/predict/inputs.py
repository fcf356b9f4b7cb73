"""Images and videos that somebody names on a command line: files, folders, patterns."""

import glob
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.data.buckets import Size, padded_size
from dwtriton.data.coco import Sample
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.data.transforms import transform

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv", ".3gp"}
WAITING = 4  # batches of samples that may wait for others of their size


def find_inputs(names: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """(images, videos) behind files, folders (searched through) and patterns, each once, in the order given.

    A pattern is expanded as a shell does it; `**` stands for any folders. A file of another suffix that is named counts
    as an image. Raises UserError for a name behind which is nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        matches = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        if not matches:
            raise UserError(f"{name} does not exist, and as a pattern it matches nothing")
        files = [file for match in matches for file in _files(Path(match))]
        if not files:
            suffixes = " ".join(sorted(IMAGES | VIDEOS))
            raise UserError(f"there is no image or video in {name}: none of its files ends in one of {suffixes}")
        found |= dict.fromkeys(files)
    return [path for path in found if not is_video(path)], [path for path in found if is_video(path)]


def _files(path: Path) -> list[Path]:
    """The file itself, or the images and videos in a folder and below."""
    if not path.is_dir():
        return [path]
    return [file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGES | VIDEOS and file.is_file()]


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def picture_names(paths: Iterable[Path]) -> dict[Path, str]:
    """A file name for what is drawn of each input: its own as JPEG or MP4, with a number if another one has that."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    tries: Counter[str] = Counter()
    for path in paths:
        suffix = ".mp4" if is_video(path) else ".jpg"
        name = path.stem + suffix
        while name in taken:
            tries[path.stem] += 1
            name = f"{path.stem}-{tries[path.stem] + 1}{suffix}"
        taken.add(name)
        names[path] = name
    return names


def unlabelled_sample(image: Tensor, cfg: Config, image_id: int, path: str) -> Sample:
    """An image, uint8 [3, h, w], resized as in testing, without ground truth."""
    nothing = torch.zeros(0, 4)
    resized, boxes, scale_factor = transform(
        image, nothing, cfg.data, cfg.inference.short_side, cfg.inference.long_side
    )
    target = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64)}
    return Sample(resized, target, image_id, path, scale_factor)


class ImageFiles(Dataset):
    """Examples of image files, numbered from 1; `image` is None and `broken` says why where one cannot be read."""

    def __init__(self, paths: Sequence[Path], cfg: Config) -> None:
        self.paths, self.cfg = paths, cfg

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        try:
            return unlabelled_sample(read_image(path), self.cfg, index + 1, str(path))
        except BrokenImageError as error:
            return Sample(None, {}, index + 1, str(path), (1.0, 1.0), [str(error)])


def image_loader(paths: Sequence[Path], cfg: Config) -> DataLoader:
    """Examples of image files one by one, in their order. Ctrl-C reaches workers too, but is for the main process."""
    return DataLoader(
        ImageFiles(paths, cfg),
        batch_size=None,
        num_workers=min(cfg.data.workers, len(paths)),
        worker_init_fn=_ignore_ctrl_c,
    )


def _ignore_ctrl_c(_worker_id: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batches_of_one_size(samples: Iterable[Sample], batch: int, divisor: int) -> Iterator[list[Sample]]:
    """Up to `batch` samples that pad to the same size, so that what is found in an image depends on it alone.

    Examples of one size keep their order. Few wait: then a batch goes that is not full.
    """
    waiting: dict[Size, list[Sample]] = defaultdict(list)
    for sample in samples:
        size = padded_size([tuple(sample.image.shape[1:])], divisor)
        waiting[size].append(sample)
        if len(waiting[size]) == batch:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) == WAITING * batch:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()
