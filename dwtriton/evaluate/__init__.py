"""`dwtriton.evaluate`: COCO metrics of a checkpoint and a report of its errors."""
