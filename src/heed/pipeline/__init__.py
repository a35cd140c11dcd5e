"""From a recipe to a run folder: what stages there are, what each reads, and how a run is resumed."""
