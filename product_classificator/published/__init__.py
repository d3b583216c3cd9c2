"""What only the package of 2024 had: its pickled heads, its clusters, and the parameters of its `Trainer`."""
