"""From a model to a running file: freezing it, and the runners."""
