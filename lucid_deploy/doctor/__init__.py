"""Find out what is installed here, and whether it works."""
