"""Our own solver, `auto`: a portfolio of programs that prove lower bounds, and of local searches."""
