"""Real packs of other people beside ours, in a real ComfyUI process: who they are, what is set up, what comes out."""
