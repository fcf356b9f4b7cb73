"""Launch configs of the kernels: the defaults, by arithmetic, and the search space of `dwtriton.tune`.

No result depends on a config beyond rounding.
"""

from itertools import product
from typing import NamedTuple

import torch

MOST_BLOCKS = 6  # of classes, that a dense pass reads at once
WIDE = 16  # bytes, the most that a thread loads at once
ASYNC = 4  # bytes, the least that it loads ahead, in stages


class DenseConfig(NamedTuple):
    """Of a dense pass; powers of two."""

    points: int  # of a tile
    classes: int  # class block: classes taken at a time
    warps: int
    tiles: int  # that a program takes, one after the other
    stages: int  # of the loop over classes, where there are too many to read them all at once

    def steps(self, num_classes: int) -> int:
        """Of the loop over classes; with one there is no loop."""
        return -(-num_classes // (self.classes * MOST_BLOCKS))

    def blocks(self, num_classes: int) -> int:
        """Blocks of classes that a step reads at once: an equal share of all."""
        return -(-num_classes // (self.classes * self.steps(num_classes)))


class BagsConfig(NamedTuple):
    """Of the sums over the points of each box; powers of two."""

    points: int  # that a program takes at a time
    warps: int
    programs: int  # at most so many share the boxes of a batch, if these are fewer


Config = DenseConfig | BagsConfig


class KernelConfigs(NamedTuple):
    """One config for each kernel; the field names are the kernels' names in tables."""

    dense_forward: DenseConfig
    bags: BagsConfig
    dense_backward: DenseConfig


class Key(NamedTuple):
    """What configs depend on; tables put sizes into buckets.

    It holds neither the batch size nor box counts, so that the gradients of an image never depend on what else is in
    its batch.
    """

    dtype: torch.dtype  # of the class logits
    layout: str  # of the class logits: "channels_last" or "contiguous"
    classes: int
    points: int  # of one image, over all levels

    @property
    def name(self) -> str:
        """The key in a table: sizes are rounded up to powers of two."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} {self.layout} classes<={power_of_two(self.classes)} points<={power_of_two(self.points)}"

    @property
    def together(self) -> int:
        return logits_together(self.classes, self.dtype, self.layout == "channels_last")


# What is worth trying, the more promising first.
_WARPS = (1, 2, 4)
_BAGS = tuple(
    BagsConfig(points, warps, programs)
    for points, warps in ((128, 2), (64, 1), (128, 4), (128, 1), (256, 4))
    for programs in (2**14, 2**16, 2**12)
)


def logits_together(num_classes: int, dtype: torch.dtype, channels_last: bool) -> int:
    """Logits of a point that a thread can load at once: as many as divide a row, or one where classes lie apart."""
    row = num_classes * dtype.itemsize
    return min(row & -row, WIDE) // dtype.itemsize if channels_last else 1


def default_configs(key: Key) -> KernelConfigs:
    """The configs without a table.

    By arithmetic, for 80 classes in bfloat16, channels_last, on sm_90, and logits as at the start of training, where
    hardly a tile has a high score:

    - Eight logits are a load of 16 bytes, and two threads that lie side by side load a sector of 32. With one warp, no
      sum over the classes of a point leaves it.
    - Forward, a warp spends about 120 instructions on a program, and 16 on a logit of each thread. With 8 logits of a
      block in a thread (16 points) these are 40, which makes 19 instructions a logit; the five loads, into 20
      registers, are on their way before any is used. With 16 logits it would be 17.5, but ten loads leave no room for
      the rest.
    - Backward it is 330 and 21: 29.5 a logit with 8, 25.4 with 16. Stores keep the loads apart, so that they need no
      room.
    - Of 16 images of 800x1344 this makes 22,400 and 11,200 warps, for the 4,224 that an H100 holds at once.
    - Of 7 boxes an image all 16 parts of a box, with two warps each, are held at once.

    Other inputs get as many logits in a thread as 64 registers hold on all GPUs without spilling: float32 takes twice
    the room, loads that are not wide have addresses of their own, and classes beyond a multiple of the block masks.
    """
    block = class_blocks(key)[0]
    forward, backward = (_dense(block, 1, *variants[0]) for variants in _of_thread(key).values())
    return KernelConfigs(forward, _BAGS[0], backward)


def search_space(key: Key) -> dict[str, list[Config]]:
    """Configs worth timing for each kernel: the default first, then the more promising before the less.

    None of them spills on sm_90; with more logits in a thread some do.
    """
    spaces: dict[str, list[Config]] = {name: [config] for name, config in default_configs(key)._asdict().items()}
    for kernel, (_, *variants) in _of_thread(key).items():
        choices = (class_blocks(key), _WARPS, variants)
        for ranks in sorted(product(*map(range, map(len, choices))), key=sum):
            block, warps, variant = (choice[rank] for choice, rank in zip(choices, ranks))
            config = _dense(block, warps, *variant)
            if config.stages == 1 or config.steps(key.classes) > 1:
                spaces[kernel].append(config)
    return spaces | {"bags": list(_BAGS)}


def _dense(block: int, warps: int, logits: int, tiles: int, stages: int) -> DenseConfig:
    return DenseConfig(32 * warps * logits // block, block, warps, tiles, stages)


def _of_thread(key: Key) -> dict[str, list[tuple[int, int, int]]]:
    """What a thread has in each dense pass, the default first: logits of a block of classes, tiles and stages."""
    block, itemsize = class_blocks(key)[0], key.dtype.itemsize
    looped = key.classes > MOST_BLOCKS * block
    lone = key.layout == "channels_last" and key.together < 4
    if not looped and block >= 16 and key.together * itemsize == WIDE:
        backward = [(8, 1, 1), (8, 2, 1)] if itemsize == 2 else [(8, 1, 1), (4, 1, 1), (4, 2, 1)]
        if itemsize == 2 and key.classes % block == 0:
            backward.insert(0, (16, 1, 1))
        return {"dense_forward": [(8, 1, 1), (16, 1, 1), (8, 2, 1)], "dense_backward": backward}
    if looped:
        forward, backward = (4, 2) if key.together < 4 else (8, max(4, key.together))
        twice = [(1, 2)] if key.together * itemsize >= ASYNC else []
    else:
        forward, backward = (4, min(4, 2 * block)) if lone or block < 8 else (8, 8)
        twice = [(2, 1)]
    return {
        kernel: [(logits, 1, 1), *((logits // 2, tiles, stages) for tiles, stages in [(1, 1), *twice])]
        for kernel, logits in (("dense_forward", forward), ("dense_backward", backward))
    }


def class_blocks(key: Key) -> list[int]:
    """Class blocks worth trying, the best first: whole sectors of 32 bytes a row, with few entries beyond the classes.

    A row of fewer bytes is one block. Where the points of a class lie together, blocks are small, to leave room for
    more points.
    """
    most = power_of_two(key.classes)
    if key.layout == "contiguous":
        return [min(most, 16 if key.classes <= 16 * MOST_BLOCKS else 4)]
    for choices in ((16, 32), (8,)):
        blocks = [block for block in choices if 32 // key.dtype.itemsize <= block <= most]
        if blocks := [block for block in blocks if -(-key.classes // block) * block <= 1.25 * key.classes]:
            return blocks
    return [min(most, 16)]


def interpreter_configs(num_classes: int) -> KernelConfigs:
    """For Triton's interpreter, where few large programs take less time than many small ones."""
    dense = DenseConfig(256, min(16, power_of_two(num_classes)), 1, 1, 1)
    return KernelConfigs(dense, BagsConfig(512, 1, 1), dense)


def power_of_two(number: int) -> int:
    """The least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()
