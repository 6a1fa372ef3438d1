"""Masked (absorbing-state) processes."""
