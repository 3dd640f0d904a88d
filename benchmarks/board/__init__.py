"""What `benchmarks/leaderboard.py` is made of: data, entries, one training run, the report."""
