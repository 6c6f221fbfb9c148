"""Registries of models: their stores verified, healed and protected through their own protocols and libraries."""
