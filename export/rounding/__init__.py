"""How weights become whole numbers where data says more than the weights alone."""
