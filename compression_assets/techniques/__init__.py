"""The steps of an ordering. A technique has a folder: its recipe, what it does to a model, and what that will cost."""
