"""Outputs on disk: whole or absent, written by one process at a time, never over what is not ours.

An output is written into a hidden folder beside it (`staging`), under a lock of its own (`claim`,
`hold`), and takes its place in one step (`exchange`). What a killed process left is known by a
marker file, and `recover` finishes or removes it. `guard` says what may be replaced.
"""
