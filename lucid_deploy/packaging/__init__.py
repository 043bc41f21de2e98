"""Write artifacts in the layout that other servers ask for."""
