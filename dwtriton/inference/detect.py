"""Detections of batches as COCO results."""

from collections.abc import Callable, Iterable

from torchvision.ops import box_convert

from dwtriton.data.batching import Batch
from dwtriton.model.detector import Detections

Predict = Callable[..., Detections]  # `PixelDetector.predict`, compiled or not


def detect(
    predict: Predict, loader: Iterable[Batch], category_ids: list[int], on_batch: Callable[[Batch], None]
) -> list[dict]:
    """Detect in every batch of a loader, in float32 whatever the precision of training.

    Returns COCO results: dicts of `image_id`, `category_id`, `bbox` (xywh in pixels of the original image), `score`.
    `on_batch` is called with every batch, for progress. Images that could not be read have no results.
    """
    results = []
    for batch in loader:
        on_batch(batch)
        for image_results in detect_batch(predict, batch, category_ids):
            results += image_results
    return results


def detect_batch(predict: Predict, batch: Batch, category_ids: list[int]) -> list[list[dict]]:
    """Return the COCO results of each image of a batch, highest-scoring first."""
    if not len(batch):
        return []
    detections = predict(batch.images, batch.image_sizes, batch.scale_factors)
    results = []
    for image_id, found in zip(batch.image_ids, detections):
        boxes = box_convert(found["boxes"].cpu().double(), "xyxy", "xywh")
        columns = boxes.tolist(), found["scores"].tolist(), found["labels"].tolist()
        results.append(
            [
                {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
                for box, score, label in zip(*columns)
            ]
        )
    return results
