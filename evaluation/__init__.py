"""Likelihood, metrics of text, metrics by models."""
