"""Cases that say what an implementation of the ``ai.lucid`` operators must compute, and code that runs them."""
