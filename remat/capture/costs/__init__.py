"""What each op of a captured step costs: measured on this machine, or estimated for a named one."""
