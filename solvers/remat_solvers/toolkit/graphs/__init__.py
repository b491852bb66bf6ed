"""Facts about a problem's graph."""
