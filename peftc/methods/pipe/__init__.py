"""Deltas written step by step in the spec."""
