"""The real bot in a simulated Discord: a teammate uploads a dataset, and the channel shows what happens."""
