"""Restoration without a prompt: DPS and PSLD, with and without PAG (PAG Table 8 and Table 4)."""
