"""Detections as COCO results."""

from collections.abc import Callable, Iterable

from torch import Tensor
from torchvision.ops import box_convert

from dwtriton.data.batch import Batch
from dwtriton.model.detector import Detections


def detect(
    predict: Callable[..., Detections],
    loader: Iterable[Batch],
    category_ids: list[int],
    on_batch: Callable[[Batch], None],
) -> list[dict]:
    """Return the COCO results of every batch of a loader, in float32 whatever the precision of training.

    predict: `PixelDetector.predict`, compiled or not. `on_batch` is called with every batch, for progress. Images that
    could not be read have no results.
    """
    results = []
    for batch in loader:
        on_batch(batch)
        if len(batch):
            detections = predict(batch.images, batch.image_sizes, batch.scale_factors)
            for image_id, found in zip(batch.image_ids, detections, strict=True):
                results += coco_results(found, image_id, category_ids)
    return results


def coco_results(found: dict[str, Tensor], image_id: int, category_ids: list[int]) -> list[dict]:
    """Return the detections of an image as dicts of `image_id`, `category_id`, `bbox` (xywh in its pixels), `score`."""
    boxes = box_convert(found["boxes"].cpu().double(), "xyxy", "xywh")
    columns = boxes.tolist(), found["scores"].tolist(), found["labels"].tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(*columns)
    ]
