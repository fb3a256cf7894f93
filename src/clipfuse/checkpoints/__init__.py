"""Checkpoints: named tensors of one model from files and the hub, opened lazily; results written whole."""
