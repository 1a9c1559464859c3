"""Spec + sites -> plan: every insertion at its places, with sizes and counts."""
