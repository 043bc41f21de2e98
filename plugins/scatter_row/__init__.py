"""Write one new row per batch row into a cache buffer of fixed size."""
