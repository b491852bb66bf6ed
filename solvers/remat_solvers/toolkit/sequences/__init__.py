"""Op sequences: made from what is dropped or segmented, and pruned."""
