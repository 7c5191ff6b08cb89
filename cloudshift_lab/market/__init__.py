"""What a move costs and whether it pays: pure functions of prices, sizes and durations."""
