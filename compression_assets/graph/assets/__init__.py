"""Assets: thin definitions around plain functions, a file a stage of the study."""
