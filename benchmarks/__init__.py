"""Measurements of speed, memory and precision on the demo's models; README.md says which."""
