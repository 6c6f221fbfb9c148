"""Where models are kept for others: hubs, registries, object stores."""
