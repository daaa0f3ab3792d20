"""The jobs: the only composers of the rooms below; what the command line and Python users call."""
