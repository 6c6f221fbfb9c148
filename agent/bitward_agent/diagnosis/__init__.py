"""Finding a fault from the model itself, when there is nothing to compare with."""
