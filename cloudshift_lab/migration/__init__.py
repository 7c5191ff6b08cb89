"""The migration saga: a pure state machine from a proposed plan to a receipt."""
