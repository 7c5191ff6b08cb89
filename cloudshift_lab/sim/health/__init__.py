"""Judges the health room's rules on recorded and simulated data, and replays real faults."""
