"""P: structured pruning of feed-forward blocks."""
