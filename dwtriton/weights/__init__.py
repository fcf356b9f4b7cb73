"""`dwtriton.weights`: checkpoints looked into and converted."""
