"""Measurements of a model directory, as typed rows."""
