"""Intervals, pairing, tests and power: pure functions of arrays."""
