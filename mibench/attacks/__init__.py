"""Model-inversion attacks, one a file; what they share lies in `parts`."""
