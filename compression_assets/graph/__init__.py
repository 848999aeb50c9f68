"""Everything that Dagster sees, and the only place that imports it."""
