"""What people do with embeddings: look at them, search in them, label them."""
