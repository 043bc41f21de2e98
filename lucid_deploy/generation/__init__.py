"""From logits to text: sampling, stops, prefixes."""
