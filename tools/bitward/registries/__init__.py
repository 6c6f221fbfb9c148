"""Model registries: what they keep, checked against their own digests, healed by range, and protected beside them."""
