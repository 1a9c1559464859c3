"""What was trained, and a lock on the base that it belongs to, in a folder."""
