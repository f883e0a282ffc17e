"""Frozen feature extractors, and the cache that lets every run share their work."""
