"""The tags of model versions, by which a registry says what Bitward found."""

from __future__ import annotations

ROOT_TAG = "bitward.root"
"""The root of the index of sidecars, as hex: what the artefacts must be, kept apart from them."""
VERDICT_TAG = "bitward.verdict"
VERIFIED_TAG = "bitward.verified"
"""When the verdict was reached: ISO 8601, UTC."""
