"""How the bot is: its database, its outbox, its trainings, its connection; asked by people, doctor and monitoring."""

from bot.health.counters import Counters
from bot.health.examining import examine, examine_health
from bot.health.health import GatewayHealth, Health, Heartbeat, OutboxHealth, problems_of

__all__ = [
    "Counters",
    "GatewayHealth",
    "Health",
    "Heartbeat",
    "OutboxHealth",
    "examine",
    "examine_health",
    "problems_of",
]
