"""Detection data: COCO format, transforms and batches."""
