"""Sound files and folders -> embeddings on disk."""
