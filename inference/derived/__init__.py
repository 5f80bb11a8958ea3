"""Models made out of the served one: same architecture, changed weights, an id of their own. Weights never leave."""
