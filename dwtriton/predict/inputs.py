"""Images and videos named on a command line: files, folders, patterns."""

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader

from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.core.files import fitting_name
from dwtriton.data.coco import Sample
from dwtriton.data.image_files import HIDDEN, is_image_file
from dwtriton.data.images import (
    IMAGE_SUFFIXES,
    NEARLY_BLACK,
    BrokenImageError,
    decode,
    is_nearly_black,
    to_bytes,
)
from dwtriton.data.workers import choose_workers, leave_signals_to_main
from dwtriton.inference.inputs import unlabelled_sample

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
VIDEO_SUFFIXES |= {".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv", ".3gp"}


def find_inputs(names: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """Return (images, videos) of files, folders (with all below) and patterns, each file once, in the order given.

    Patterns are expanded as by a shell; `**` stands for any folders. A file given by name is an image unless it has the
    suffix of a video. In folders, formats that cannot be read count as images, so that they are named; what macOS
    writes beside each file, and what is no ordinary file, is passed over.
    Raises UserError for a name that leads to no file.
    """
    found: dict[Path, None] = {}
    for name in names:
        matches = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        if not matches:
            raise UserError(f"{name} does not exist, and as a pattern it matches nothing")
        files: list[Path] = []
        for path in map(Path, matches):
            if path.is_dir():
                files += [file for file in sorted(path.rglob("*")) if is_image_file(file) or _is_video_file(file)]
            else:
                files.append(path)
        if not files:
            ends = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            raise UserError(f"there is no image or video in {name}: none of its files ends in one of {ends}")
        found |= dict.fromkeys(files)
    return [path for path in found if not is_video(path)], [path for path in found if is_video(path)]


def _is_video_file(path: Path) -> bool:
    return is_video(path) and not path.name.startswith(HIDDEN) and path.is_file()


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def picture_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Return a file name for the picture of each input: its own as .jpg or .mp4, numbered if it is taken."""
    path_of: dict[str, Path] = {}
    tries: Counter[str] = Counter()
    for path in paths:
        suffix = ".mp4" if is_video(path) else ".jpg"
        name = fitting_name(path.stem, suffix)
        while name in path_of:
            tries[path.stem] += 1
            name = fitting_name(path.stem, f"-{tries[path.stem] + 1}{suffix}")
        path_of[name] = path
    return {path: name for name, path in path_of.items()}


def image_samples(paths: Sequence[Path], cfg: Config) -> DataLoader:
    """Return an iterable of samples, in order and with ids from 1, that worker processes read.

    Of an unreadable file `image` is None and `broken` gives the reason, of a doubtful one `broken` says what it is.
    Workers leave Ctrl-C to the main process.
    """
    return DataLoader(
        list(enumerate(paths, 1)),
        batch_size=None,
        collate_fn=partial(_read_sample, cfg),
        num_workers=min(choose_workers(cfg.data.workers), len(paths)),
        worker_init_fn=leave_signals_to_main,
    )


def _read_sample(cfg: Config, numbered: tuple[int, Path]) -> Sample:
    image_id, path = numbered
    try:
        decoded = decode(path, None, "auto", cfg.data.max_pixels)
    except BrokenImageError as error:
        return Sample(None, {}, image_id, str(path), (1.0, 1.0), [str(error)])
    sample = unlabelled_sample(to_bytes(decoded), cfg, image_id, str(path))
    return replace(sample, broken=[f"{path}: an image {NEARLY_BLACK}"]) if is_nearly_black(decoded) else sample
