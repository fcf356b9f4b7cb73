"""What a data set holds in a few values, by which a resumed run knows its data again."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Fingerprint(NamedTuple):
    """Numbers and digests of the items of a data set and of their targets; not of the pixels, nor of file names."""

    images: int
    boxes: int
    image_digest: str  # of ids and sizes
    box_digest: str  # of all that targets hold


def fingerprint(ids: Sequence[Any], sizes: np.ndarray, targets: Sequence[dict[str, np.ndarray]]) -> Fingerprint:
    """Return the fingerprint of items by their ids, sizes [N, 2] and targets."""
    boxes = sum(len(target["labels"]) for target in targets)
    arrays = (array.tobytes() for target in targets for array in target.values())
    return Fingerprint(len(ids), boxes, _digest([repr((ids, sizes.tolist())).encode()]), _digest(arrays))


def changes_of_data(before: dict[str, Any], now: Fingerprint) -> str:
    """Say how a data set differs from one whose fingerprint, as a dict, was `before`; empty if it does not."""
    changes = []
    for what, digest in (("images", "image_digest"), ("boxes", "box_digest")):
        old, new = before.get(what), getattr(now, what)
        if old != new:
            changes.append(f"{new} {what}, were {old}")
        elif before.get(digest) != getattr(now, digest):
            changes.append(f"{new} {what} as before, but not the same")
    return "; ".join(changes)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]
