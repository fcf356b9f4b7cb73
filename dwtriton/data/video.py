"""Frames of videos, read and written with PyAV, which is optional."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from dwtriton.data.images import BrokenImageError
from dwtriton.errors import UserError


def video_frames(path: Path) -> Iterator[Tensor]:
    """The frames of a video, uint8 [3, h, w], one after another.

    Raises UserError without PyAV, and BrokenImageError where the file cannot be decoded (further).
    """
    av = import_av()
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield torch.from_numpy(np.ascontiguousarray(frame.to_ndarray(format="rgb24"))).permute(2, 0, 1)
    except (av.FFmpegError, IndexError) as error:  # IndexError: no stream of pictures in it
        raise BrokenImageError(f"{path}: {error}") from None


def video_rate(path: Path) -> float:
    """Frames a second; 25 where the file does not say or cannot be read."""
    av = import_av()
    try:
        with av.open(str(path)) as container:
            return float(container.streams.video[0].average_rate or 25)
    except (av.FFmpegError, IndexError):
        return 25.0


def import_av():
    """PyAV, an optional dependency. Raises UserError if it is not installed."""
    try:
        import av
    except ModuleNotFoundError:
        raise UserError("videos need PyAV: pip install 'dwtriton[video]'") from None
    return av


def write_video(path: Path, frames: Iterator[Tensor], rate: float) -> None:
    """Write frames, uint8 [3, h, w] of one size, `rate` of them a second; an odd side grows by a pixel."""
    av = import_av()
    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            height, width = frame.shape[1:]
            even = pad(frame, (0, width % 2, 0, height % 2)).permute(1, 2, 0)
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
                stream.height, stream.width, stream.pix_fmt = *even.shape[:2], "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even.numpy()), format="rgb24")
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode())
