"""Blocks and networks that two or more families use."""
