"""The integer program over few moments of the step, solved lazily."""
