"""Where runs execute: an engine starts, observes and stops one agent per attempt."""
