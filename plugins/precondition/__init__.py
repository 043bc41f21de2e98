"""The preconditioner: solve ``L Y = V`` for the values that LUCID attention averages."""
