"""Engines in which people serve models, each in a process of its own: what a model's file or directory does there."""
