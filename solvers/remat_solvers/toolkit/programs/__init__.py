"""Mathematical programs: their rows and the backends that solve them."""
