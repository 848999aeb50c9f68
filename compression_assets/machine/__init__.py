"""The machine that a step runs on: processes, threads, devices, precision, progress."""
