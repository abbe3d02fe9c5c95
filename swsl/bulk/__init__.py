"""Many images: where they come from, and where their rows go."""
