"""One loop for every model: it knows players, turns and losses, and no family."""
