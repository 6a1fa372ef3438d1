"""Corpora, tokenizers, rows and batches."""
