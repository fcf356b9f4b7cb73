"""The detector: backbone, pyramid, head and post-processing."""
