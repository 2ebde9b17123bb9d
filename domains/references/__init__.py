"""References: primitives of one domain, used from another."""
