"""Judge a run while it trains: `rules` decide what is wrong, `callback` decides what to do about it."""
