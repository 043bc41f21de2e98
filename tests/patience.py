"""How long tests wait for what will happen: a guard against waiting for ever, and no measure of speed."""

PATIENCE = 600.0  # seconds; below pytest's own limit, so that the test that waits can say what for
