"""What belongs to a host of our operators, not to an operator: launching, registering, building its library."""
