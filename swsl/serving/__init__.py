"""The HTTP server of one model: `swsl serve`. Needs the extra `serve`."""
