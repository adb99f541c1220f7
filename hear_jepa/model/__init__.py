"""The model: how sound is cut, heard, encoded and pooled."""
