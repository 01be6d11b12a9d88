"""The files through which bot and trainer exchange what `trainer.protocol` defines; no torch, no Discord."""
