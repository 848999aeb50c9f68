"""A package of somebody else: two techniques and a number format, found through entry points alone."""
