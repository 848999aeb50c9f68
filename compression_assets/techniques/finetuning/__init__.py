"""FT: training on the same tokens without a teacher, the control for KD."""
