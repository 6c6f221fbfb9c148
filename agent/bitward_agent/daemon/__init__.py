"""The agent: a process that watches model files, scrubs them on a schedule, heals what it may and accounts for all of it."""
