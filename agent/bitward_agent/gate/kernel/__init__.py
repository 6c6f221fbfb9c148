"""The kernel gate: opens of protected files wait for a verdict, whoever opens them (fanotify)."""
