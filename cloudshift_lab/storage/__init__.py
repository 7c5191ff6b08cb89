"""Object stores with our own deadlines, create-if-absent that tells the truth, and the run log."""
