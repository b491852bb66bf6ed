"""What methods are built from, by idea."""
