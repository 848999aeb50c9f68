"""Steps on a Ray cluster: how they are submitted, watched and logged. Used where COMPRESSION_RAY is set."""
