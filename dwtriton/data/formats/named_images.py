"""Finding the images that label files name: by a path beside them, of another machine, or in a URL."""

import os
from collections import defaultdict
from itertools import takewhile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from dwtriton.data.formats.folders import split_of
from dwtriton.data.image_files import is_file, is_image_file
from dwtriton.data.values import url_path

LOCAL_FILES = "local-files/?d="  # Label Studio's URLs of files on its own disk


class NamedImages:
    """The image files in a folder and below, `images`, found by the names that label files there give them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = list(filter(is_image_file, sorted(root.rglob("*"))))
        self.by_path = {os.path.normpath(image): image for image in self.images}
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for image in self.images:
            self.by_name[image.name].append(image)

    def find(self, name: str, folder: Path) -> Path | None:
        """Return the image that a label file in `folder` calls `name`, None if there is none.

        It is the file that the path leads to, which may lie elsewhere; or else, of the images of this name in no other
        split, the one whose folders end as the path's do, and then the one that lies nearest.
        """
        plain = name.replace("\\", "/")
        exact = os.path.normpath(folder / plain)
        if is_file(Path(exact)):
            return self.by_path.get(exact, Path(exact))
        parts, split = path_parts(plain), split_of(self.root, folder)
        candidates = [
            image
            for image in self.by_name.get(parts[-1], [])
            if split is None or split_of(self.root, image) in (split, None)
        ]
        ranked = sorted(candidates, key=lambda image: (_common(parts, image.parts), _near(image, folder)))
        return ranked[-1] if ranked else None


def path_parts(name: str) -> tuple[str, ...]:
    """Return the folders and the name in a path or a URL."""
    if LOCAL_FILES in name:
        name = name.partition(LOCAL_FILES)[2]
    return PurePosixPath(unquote(url_path(name) if "://" in name else name)).parts or ("",)


def _common(parts: tuple[str, ...], others: tuple[str, ...]) -> int:
    """How many folders two paths end with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts[::-1], others[::-1])))


def _near(image: Path, folder: Path) -> int:
    return len(os.path.commonpath([image, folder]))
