"""What a user takes away from a study: which model, in which form, and a machine and a disk that are fit for it."""
