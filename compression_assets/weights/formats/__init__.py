"""Number formats: each is one class that says how a weight is stored, and everything that follows from it."""
