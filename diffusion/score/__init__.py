"""The score-based process over embeddings."""
