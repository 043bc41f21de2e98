"""Numbers: comparisons, gates, and what a verification runs."""
