"""Methods that need the model itself, not only its problem."""
