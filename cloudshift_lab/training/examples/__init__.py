"""Training scripts to start from; each runs by itself and as a run."""
