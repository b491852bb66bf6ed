"""Methods that recompute: one published method per file or package."""
