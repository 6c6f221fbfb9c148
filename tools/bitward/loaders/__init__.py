"""Gates in front of Python's loaders: what they hand out was hashed, or is refused."""
