"""Plan -> fx graphs -> a module that trains within its budget."""
