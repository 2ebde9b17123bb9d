"""How fast it is, beside its peers, in one run."""
