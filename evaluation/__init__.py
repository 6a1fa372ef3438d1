"""Evaluation: likelihood, text metrics, and metrics that use a language model."""
