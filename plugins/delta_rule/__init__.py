"""The delta rule: each token corrects a state by the part of its value that the state does not yet predict."""
