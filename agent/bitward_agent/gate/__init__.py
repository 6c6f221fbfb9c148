"""Gates: a damaged model is stopped, or healed, before it is loaded."""
