"""Recurrent layers as one forward and one backward op each."""
