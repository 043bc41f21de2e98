"""Models that classes of transformers compute, with our attention put in: every family that is not one of ours."""
