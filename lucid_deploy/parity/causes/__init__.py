"""Where a difference comes from: which layer, which operator, which rounding."""
