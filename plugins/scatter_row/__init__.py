"""Write one or more new rows per batch row into a cache buffer of fixed size."""
