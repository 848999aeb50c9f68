"""What Dagster sees: thin assets around plain functions, one file a stage of the study."""
