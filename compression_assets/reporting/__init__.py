"""What a study shows: the database derived from its artifacts, the leaderboard, and the report on one page."""
