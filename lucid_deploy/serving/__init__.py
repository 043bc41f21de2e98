"""An OpenAI-compatible HTTP API over continuous batching, in one process or on Ray Serve."""
