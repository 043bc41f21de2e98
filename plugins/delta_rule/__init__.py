"""The delta rule: a state that each token corrects by what it does not yet predict."""
