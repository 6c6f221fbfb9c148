"""Registries and stores of models: what they keep, verified, healed by range, and protected beside it.

Where bytes are named by their digest (``hf_*``, ``oci_*``, ``ollama*``) the digest decides what is right, and the sidecar says where the
damage is. Where they are not (``mlflow*``, ``scrub``) the sidecar decides, and in MLflow the registry keeps the root of the sidecars.
``blob_*`` is what OCI registries, OCI layouts and Ollama stores share; where damage looks to be (``blob_suspects``) hub caches ask as well.
"""
