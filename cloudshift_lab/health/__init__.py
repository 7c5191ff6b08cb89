"""What is wrong with a run and its machines: pure functions from windows to findings."""
