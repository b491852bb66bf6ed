"""Our own solver, `auto`: a program over few moments and a search over sequences, side by side."""
