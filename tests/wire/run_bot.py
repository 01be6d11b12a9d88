"""Run the real `python -m bot`, pointed at a Discord on loopback; discord.py and the bot are unchanged.

python tests/wire/run_bot.py http://127.0.0.1:PORT run --config FILE

discord.py has its addresses in two class attributes. They are set at the moment it is imported, and not before: the bot
imports it late, and what it does until then is tested too.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType


class ImportHook(importlib.abc.MetaPathFinder):
    """Calls a function with a module right after its first import."""

    def __init__(self, after: dict[str, Callable[[ModuleType], None]]) -> None:
        self._after = after

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._after:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        run, then = spec.loader.exec_module, self._after.pop(name)

        def exec_module(module: ModuleType) -> None:
            run(module)
            then(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def api_url(url: str) -> str:
    return f"{url}/api/v10"


def gateway_url(url: str) -> str:
    return f"{url.replace('http', 'ws', 1)}/gateway"


def main(url: str, arguments: list[str]) -> None:
    def point_api(module: ModuleType) -> None:
        module.Route.BASE = api_url(url)

    def point_gateway(module: ModuleType) -> None:
        import yarl

        module.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(gateway_url(url))

    sys.meta_path.insert(0, ImportHook({"discord.http": point_api, "discord.gateway": point_gateway}))
    sys.path[0] = str(Path(__file__).parents[2])
    sys.argv = ["bot", *arguments]
    runpy.run_module("bot", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
