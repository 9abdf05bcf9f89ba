"""nox -s soak: hours of mixed prompts against a real server."""
