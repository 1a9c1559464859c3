"""What the modules of all methods share: the base class, banks, gates, heads."""
