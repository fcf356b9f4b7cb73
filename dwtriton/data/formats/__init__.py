"""Data sets as they come: checked, and converted to COCO format."""
