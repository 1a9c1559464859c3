"""Learned vectors that scale or shift a value."""
