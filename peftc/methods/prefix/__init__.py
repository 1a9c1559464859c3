"""Trainable keys and values in front of attention."""
