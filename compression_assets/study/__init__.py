"""What a study file says: its model, how it is read, the grammar of orderings, and the names of assets."""
