"""Judging: how good a model's pictures are, in numbers that carry their protocol."""
