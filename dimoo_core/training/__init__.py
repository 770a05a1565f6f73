"""How the two networks are taught: objective, data, trainer; small here, written for the 8B to grow out of."""
