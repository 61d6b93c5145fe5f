"""The contracts: what a batch, a model, a configuration and a system are, and how they are saved."""
