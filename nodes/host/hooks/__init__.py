"""The ways into a network: what a hook, a patch or a replacement does inside one call. Knows no run and no step."""
