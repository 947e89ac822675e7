"""What erasebench costs, measured; each script prints a table."""
