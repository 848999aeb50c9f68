"""Measurements of a model directory: plain Python and torch, typed rows out."""
