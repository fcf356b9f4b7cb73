"""Training a detector: the loop, one optimiser step, and what a run writes."""
