"""Checkpoints: reading, writing, versions, and MMDetection's files."""
