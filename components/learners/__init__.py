"""Learners: one family a file, built from a plain specification and loaded by name."""
