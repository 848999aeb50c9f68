"""Compression techniques: one file each, plain torch, no Dagster."""
