"""Q: low-bit weights, and the ways of rounding to them."""
