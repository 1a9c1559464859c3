"""Trainable rows in front of the input embeddings."""
