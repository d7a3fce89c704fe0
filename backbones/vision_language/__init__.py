"""Backbones that see: a class of transformers that joins a vision tower to a language model, in the same contract."""
