"""From logits to text: sampling, stop strings, constraints, drafts and stored prefixes."""
