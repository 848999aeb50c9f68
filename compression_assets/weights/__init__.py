"""Model directories and the number formats of their weights."""
