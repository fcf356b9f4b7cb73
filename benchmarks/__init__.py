"""Measurements of the kernels, the training step and the detector against named baselines."""
