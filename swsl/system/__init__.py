"""Files, signals and the terminal: what the rest of swsl asks of the operating system."""
