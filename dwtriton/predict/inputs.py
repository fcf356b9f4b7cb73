"""Images and videos named on a command line: files, folders, patterns."""

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.data.coco import Sample
from dwtriton.data.images import IMAGE_SUFFIXES, BrokenImageError, read_image
from dwtriton.data.workers import leave_signals_to_main
from dwtriton.inference.inputs import unlabelled_sample

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
VIDEO_SUFFIXES |= {".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv", ".3gp"}


def find_inputs(names: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """Return (images, videos) of files, folders (with all below) and patterns, each file once, in the order given.

    Patterns are expanded as by a shell; `**` stands for any folders. A file given by name is an image unless it has the
    suffix of a video. Raises UserError for a name that leads to no file.
    """
    found: dict[Path, None] = {}
    for name in names:
        matches = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        if not matches:
            raise UserError(f"{name} does not exist, and as a pattern it matches nothing")
        files = [file for match in matches for file in _files(Path(match))]
        if not files:
            suffixes = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            raise UserError(f"there is no image or video in {name}: none of its files ends in one of {suffixes}")
        found |= dict.fromkeys(files)
    return [path for path in found if not is_video(path)], [path for path in found if is_video(path)]


def _files(path: Path) -> list[Path]:
    """Return the file itself, or all images and videos below a folder."""
    if not path.is_dir():
        return [path]
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return [file for file in sorted(path.rglob("*")) if file.suffix.lower() in suffixes and file.is_file()]


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def picture_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Return a file name for the picture of each input: its own as .jpg or .mp4, numbered if it is taken."""
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


class ImageFiles(Dataset):
    """Samples of image files, with ids from 1; of an unreadable file `image` is None and `broken` gives the reason."""

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
    """Return a loader of samples, one by one and in order. Its workers leave Ctrl-C to the main process."""
    return DataLoader(
        ImageFiles(paths, cfg),
        batch_size=None,
        num_workers=min(cfg.data.workers, len(paths)),
        worker_init_fn=leave_signals_to_main,
    )
