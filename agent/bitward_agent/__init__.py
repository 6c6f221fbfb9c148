"""What runs: decisions in pure modules, effects in a thin shell around them."""
