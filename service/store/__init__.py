"""What the gateway remembers: completions, experiments, feedback, reviews, in SQLite or PostgreSQL."""
