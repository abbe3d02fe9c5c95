"""The `swsl` command."""
