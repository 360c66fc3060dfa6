"""Families of models: their parts in memory and their files on disk."""
