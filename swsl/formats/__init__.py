"""The frozen module as a file: its archive, what it says about itself, its network table, and the check that it computes what it did."""
