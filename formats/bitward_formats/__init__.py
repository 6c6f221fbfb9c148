"""What is on disk: bytes in, values out.

This package never opens a file, starts a thread, asks for the time or talks to a network. ``SPEC.md`` beside it is
normative for everything it encodes and decodes.
"""
