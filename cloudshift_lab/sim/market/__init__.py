"""Replays of recorded markets: what a policy would have paid, and what hindsight would have."""
