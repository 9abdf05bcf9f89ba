"""Tests PAG together with other packs in a real ComfyUI process: the packs, their setups, the results."""
