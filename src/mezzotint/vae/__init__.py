"""Variational autoencoders, and what came before them: survey, section 2."""
