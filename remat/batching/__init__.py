"""A step in several parts of the batch, and which size of part is fastest."""
