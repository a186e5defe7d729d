"""`sluice`, the command line."""
