"""The leaderboard: a static site of all rows, ours, external and published."""
