"""Runs side by side: tables and pictures."""
