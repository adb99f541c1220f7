"""Training audio as batches of crops: from memory, or streamed from shards."""
