"""`dwtriton.train`: the training run."""
