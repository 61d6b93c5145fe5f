"""Autoregression: an order, a causal network and a head."""
