"""Judging answers with a language model, through DeepEval: prompts, judges, calibration, typed rows out."""
