"""What ``market`` does: prices, advice, and how good the advice has been."""
