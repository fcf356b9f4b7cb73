"""Detection data: COCO files in, batches of uint8 images and targets out."""
