"""From logits to text: sampling, stop strings, constraints, speculative decoding and stored prefixes."""
