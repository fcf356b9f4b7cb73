"""`load_detector`: a checkpoint with everything that is needed to detect in images."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dwtriton.checkpoints.checkpoint import Checkpoint, load_checkpoint, load_weights
from dwtriton.config.load import override_config
from dwtriton.core.errors import UserError
from dwtriton.data.batch import collate
from dwtriton.data.coco import Sample
from dwtriton.inference.inputs import ImageInput, batches_of_one_size, image_list, read_pixels, unlabelled_sample
from dwtriton.model.detector import build_detector
from dwtriton.model.pixels import PixelDetector, compile_predict


def load_detector(
    path: str | os.PathLike,
    device: str | torch.device = "auto",
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
) -> "ReadyDetector":
    """Return the detector of a checkpoint, ready to use: `load_detector("best.pt")(["a.jpg"])` detects.

    path: a checkpoint of a training run, or a converted one. If the run kept an EMA, its weights are taken.
    device: "auto" takes the GPU if there is one, otherwise the CPU.
    overrides: changes of the checkpoint's config, such as "inference.score_threshold=0.3".
    data_root: other data in COCO layout for the commands that read data; nothing is generated there.
    Raises UserError for a file that is no checkpoint, overrides that do not fit it, and a device that is not there.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"path must be that of a checkpoint, not {path!r}")
    path, device = Path(path), _find_device(device)
    checkpoint = load_checkpoint(path)
    config = override_config(checkpoint.config, overrides, data_root)
    if data_root is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"shapes": None})})
    loss = config.loss.model_copy(update={"backend": "auto"})  # the run's may need a GPU, and inference has no loss
    detector = build_detector(config.model_copy(update={"loss": loss}))
    load_weights(detector, checkpoint.weights, str(path))
    network = PixelDetector(detector, config.data).eval()
    return ReadyDetector(network, checkpoint._replace(config=config, optimizer=None), device)


class ReadyDetector:
    """A detector that takes images of any kind and gives boxes in their own pixels; made by `load_detector`.

    Public attributes: `checkpoint` (with its config overridden), `config`, `network` (the PixelDetector, in evaluation
    mode), `predict` (its `predict`, compiled if `inference.compile` says so), `device`, and of labels 0..C-1
    `class_names` (category ids where the checkpoint has no names) and `category_ids`.
    """

    def __init__(self, network: PixelDetector, checkpoint: Checkpoint, device: torch.device) -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.checkpoint, self.config, self.device = checkpoint, checkpoint.config, device
        self.class_names, self.category_ids = checkpoint.labels, checkpoint.category_ids
        self.predict = compile_predict(self.network, self.config.inference.compile)

    def __call__(
        self, images: ImageInput | Iterable[ImageInput], batch_size: int = 8, score_threshold: float | None = None
    ) -> list[dict[str, Tensor | list[str]]]:
        """Detect in one image or in several.

        images: paths, PIL images, uint8 arrays [h, w, 3] and uint8 tensors [3, h, w], RGB, of any sizes. Files are
        turned upright as their EXIF orientation says; other images are taken as they lie.
        batch_size: images of one padded size that go through the network together.
        score_threshold: detections score above it; by default `inference.score_threshold` of the config.

        Returns for each image {"boxes": [n, 4] float32 xyxy in pixels of that image, "scores": [n] float32, "labels":
        [n] int64, "names": class names}, highest-scoring first, on the CPU. What is found in an image does not depend
        on the others, up to rounding.
        Raises UserError, which names the image, for one that cannot be used.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        if score_threshold is None:
            score_threshold = self.config.inference.score_threshold
        if not isinstance(score_threshold, int | float) or not 0 <= score_threshold <= 1:
            raise UserError(f"score_threshold is a score from 0 to 1, not {score_threshold}")
        images = image_list(images)
        limit = self.config.data.max_pixels
        samples = (
            unlabelled_sample(read_pixels(image, f"images[{index}]", limit), self.config, index, f"images[{index}]")
            for index, image in enumerate(images)
        )
        results: list[dict[str, Any]] = [{} for _ in images]
        for sample, found in self.detect(samples, batch_size, score_threshold=score_threshold):
            names = [self.class_names[label] for label in found["labels"].tolist()]
            results[int(sample.image_id)] = found | {"names": names}
        return results

    def detect(
        self, samples: Iterable[Sample], batch_size: int, **limits: float
    ) -> Iterator[tuple[Sample, dict[str, Tensor]]]:
        """Yield each sample with its detections, in float32 and on the CPU; only those of one padded size keep order.

        `limits` as for `DualWeightDetector.predict`.
        """
        for samples_of_batch in batches_of_one_size(samples, batch_size, self.config.data.size_divisor):
            batch = collate(samples_of_batch, self.config.head.num_classes, self.config.data.size_divisor)
            with torch.autocast(self.device.type, enabled=False):
                found = self.predict(batch.images, batch.image_sizes, batch.scale_factors, **limits)
            for sample, result in zip(samples_of_batch, found):  # copied outside of inference mode, for autograd
                yield sample, {name: values.cpu().clone() for name, values in result.items()}


def _find_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:  # the last from a PyTorch that was built without CUDA
        reason = str(error).partition("\n")[0]
        raise UserError(f"device {str(device)!r} cannot be used ({reason}); 'auto' takes what is there") from None
    return found
