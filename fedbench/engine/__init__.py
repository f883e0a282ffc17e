"""Engines: Flower Grids that run virtual clients in this process or on Ray."""
