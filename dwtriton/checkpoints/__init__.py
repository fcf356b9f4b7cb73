"""Checkpoint files: read and write them, upgrade older formats, read those of MMDetection."""
