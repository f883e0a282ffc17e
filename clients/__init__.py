"""What runs on a node: the ClientApp, the local training loop, tasks, models and feature extractors."""
