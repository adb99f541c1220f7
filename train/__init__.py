"""Pretraining: any audio -> shards -> JEPA -> a checkpoint that `hear_jepa.load_model` serves."""
