"""nox -s soak: stress-tests a real server with mixed prompts."""
