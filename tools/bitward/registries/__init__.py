"""Places where models are kept and handed out: what is in them is verified, healed, and given sidecars."""
