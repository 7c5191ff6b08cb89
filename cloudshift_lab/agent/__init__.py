"""One per node: supervises the ranks, saves their state, obeys orders from the bucket."""
