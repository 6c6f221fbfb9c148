"""Scrubbing whole stores: every checkpoint verified against the sidecar beside it, by many workers, to be stopped and taken up anywhere."""
