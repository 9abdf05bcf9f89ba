"""Restoration without a prompt: DPS against DPS + PAG (PAG Table 8)."""
