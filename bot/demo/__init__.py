"""The real bot in a simulated Discord: a teammate drops a dataset, and the channel shows what becomes of it."""

from bot.demo.show import run_demo

__all__ = ["run_demo"]
