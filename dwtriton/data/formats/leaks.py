"""Image files that lie in two splits, which a validation then measures as if they were new."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from dwtriton.data.image_files import is_file


def shared_files(train: Iterable[Path], val: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Return pairs (validation, training) of files with the same content. Only files of one size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in train:
        if is_file(path):
            by_size[path.stat().st_size].append(path)
    digests: dict[Path, str] = {}

    def digest(path: Path) -> str:
        if path not in digests:
            digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return digests[path]

    pairs = []
    for path in filter(is_file, val):
        same = [other for other in by_size[path.stat().st_size] if path == other or digest(path) == digest(other)]
        pairs += [(path, other) for other in same[:1]]
    return pairs
