"""Checkpoints: a text model and its folder on disk."""
