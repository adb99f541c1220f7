"""Recipes for freely licensed audio."""
