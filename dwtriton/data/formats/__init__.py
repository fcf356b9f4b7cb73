"""Data sets in the layouts that people have: found, checked, and converted to COCO's."""
