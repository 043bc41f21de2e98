"""What several operators share: norms of keys, products of few rows with many, sizes of kernel launches."""
