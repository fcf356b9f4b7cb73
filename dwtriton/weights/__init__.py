"""The command `dwtriton.weights`: show and convert checkpoints."""
