"""`dwtriton.evaluate`: COCO figures of a checkpoint and a report of its errors."""
