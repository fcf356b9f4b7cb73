"""Reading and writing frames of videos with PyAV, an optional dependency."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from dwtriton.core.errors import UserError
from dwtriton.core.files import CheckedFile
from dwtriton.data.images import BrokenImageError

MIN_COMPLETE = 0.9  # of the announced frames: edits and longer audio make files announce too many
DEFAULT_RATE = Fraction(25)  # frames a second, where the file has none


def import_av():
    """Import PyAV. Raises UserError if it is not installed."""
    try:
        import av
    except ModuleNotFoundError:
        raise UserError("videos need PyAV: pip install 'dwtriton[video]'") from None
    return av


class Video(AbstractContextManager):
    """An open video file, to be read once and in `with`.

    `rate` is in frames a second, `length` the number of frames that the file announces, or None, and `read` the number
    read so far. Raises UserError without PyAV, and BrokenImageError for a file that cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._av = path, import_av()
        if path.exists() and not path.is_file():
            raise BrokenImageError(f"{path}: is no ordinary file")
        try:
            self._container = self._av.open(str(path), metadata_errors="replace")
        except self._av.FFmpegError as error:
            raise BrokenImageError(f"{path}: {error.strerror}") from None
        if not self._container.streams.video:
            self._container.close()
            raise BrokenImageError(f"{path}: there are no pictures in it")
        self.read = 0
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self.rate: Fraction = stream.average_rate or DEFAULT_RATE
        seconds = (self._container.duration or 0) / self._av.time_base
        self.length: int | None = stream.frames or round(seconds * self.rate) or None

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def frames(self) -> Iterator[Tensor]:
        """Yield the frames, uint8 [3, h, w], turned upright, all of the size of the first.

        Raises BrokenImageError where decoding fails, and at the end if too many frames are missing.
        """
        size = {}
        try:
            for frame in self._container.decode(video=0):
                size = size or {"width": frame.width, "height": frame.height}
                pixels = frame.to_ndarray(format="rgb24", **size)  # [h, w, 3]
                upright = np.rot90(pixels, round(frame.rotation / 90))  # both count counter-clockwise
                self.read += 1
                yield torch.from_numpy(np.ascontiguousarray(upright)).permute(2, 0, 1)
        except self._av.FFmpegError as error:
            raise BrokenImageError(f"{self.path}: {error.strerror}, after {self.read} frames") from None
        if not self.read:
            raise BrokenImageError(f"{self.path}: there are no pictures in it")
        if self.length and self.read < MIN_COMPLETE * self.length:
            raise BrokenImageError(f"{self.path}: ends after {self.read} of {self.length} frames")


def write_video(file: CheckedFile, frames: Iterator[Tensor], rate: Fraction) -> None:
    """Write frames, uint8 [3, h, w] of one size, as H.264 at `rate` frames a second; odd sides grow by a pixel.

    Raises OSError soon after the disk refuses a part.
    """
    av = import_av()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate.limit_denominator(1001))  # exact for NTSC, 30000/1001
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            height, width = frame.shape[1:]
            even = pad(frame, (0, width % 2, 0, height % 2)).permute(1, 2, 0)  # [H, W, 3]
            if not number:
                stream.height, stream.width = even.shape[:2]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even.numpy()), format="rgb24")
            container.mux(stream.encode(picture))
            file.check()
        container.mux(stream.encode())
