"""What only the package of 2024 had: its pickled heads and its clusters."""
