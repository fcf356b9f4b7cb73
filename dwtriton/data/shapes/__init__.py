"""The generated data set `shapes`: drawing, scenes, and the files in COCO layout."""
