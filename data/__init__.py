"""Where text comes from: corpora, tokenizers, rows and batches."""
