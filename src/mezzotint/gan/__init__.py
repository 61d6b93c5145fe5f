"""Generative adversarial networks: survey, section 3."""
