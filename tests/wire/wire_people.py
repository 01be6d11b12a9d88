"""People of the loopback Discord: they run commands, press buttons, fill forms, and read what is offered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.wire.wire_discord import WireDiscord, WireInteraction
from tests.wire.wire_state import JSON, WireChannel, WireFile, WireMember, WireMessage, WireUser, walk

_USER, _CHANNEL, _ROLE, _ATTACHMENT = 6, 7, 8, 11
_COMMAND, _COMPONENT, _AUTOCOMPLETE, _SUBMIT = 2, 3, 4, 5
_ATTACHMENT_LIMIT = 10 * 1024**2


@dataclass
class Person:
    """A member of a server; each method dispatches an interaction and returns it at once, answered or not."""

    discord: WireDiscord
    member: WireMember

    @property
    def user(self) -> WireUser:
        return self.member.user

    @property
    def id(self) -> int:
        return self.member.user.id

    async def slash(self, command: str, channel: WireChannel | None = None, **options: Any) -> WireInteraction:
        """Run `/command sub`; a file is `(name, bytes)` or a `WireFile`, a member a `Person`."""
        return await self._slash(_COMMAND, command, channel, options)

    async def complete(
        self, command: str, option: str, typed: str, channel: WireChannel | None = None, **options: Any
    ) -> WireInteraction:
        """Type into an option that offers choices: see `WireInteraction.choices`."""
        return await self._slash(_AUTOCOMPLETE, command, channel, options | {option: typed}, focused=option)

    async def menu(self, command: str, message: WireMessage) -> WireInteraction:
        """Run a command of a message's context menu."""
        channel = self.discord.channels[message.channel_id]
        found = self._command(command, 3, channel)
        data = {
            "id": found["id"], "name": command, "type": 3, "target_id": str(message.id),
            "resolved": {"messages": {str(message.id): message.to_json(self.discord.url)}},
        }  # fmt: skip
        return await self.send(WireInteraction(_COMMAND, self.user, channel, data))

    async def click(self, message: WireMessage, button: str) -> WireInteraction:
        """Press a button by its label or custom ID."""
        found = next(
            (
                each
                for each in walk(message.components)
                if each["type"] == 2 and button in {each.get("label"), each.get("custom_id")}
            ),
            None,
        )
        assert found is not None, f"no button {button!r}; there are {list(message.buttons)}"
        assert not found.get("disabled"), f"{button!r} cannot be pressed"
        return await self.press(message, found["custom_id"])

    async def press(self, message: WireMessage, custom_id: str) -> WireInteraction:
        """Press a button that need not exist (a forged or old one)."""
        return await self._component(message, {"component_type": 2, "custom_id": custom_id})

    async def select(self, message: WireMessage, *values: str, custom_id: str | None = None) -> WireInteraction:
        """Choose from the (first) menu of a message."""
        custom_id = custom_id or message.selects[0]["custom_id"]
        return await self._component(message, {"component_type": 3, "custom_id": custom_id, "values": list(values)})

    async def _component(self, message: WireMessage, data: JSON) -> WireInteraction:
        channel = self.discord.channels[message.channel_id]
        return await self.send(WireInteraction(_COMPONENT, self.user, channel, data, source=message))

    async def submit(self, asked: WireInteraction, **values: Any) -> WireInteraction:
        """Send the form that an interaction was answered by; values by custom ID, or by the start of a label."""
        assert asked.modal is not None, "there is no form"
        data = {"custom_id": asked.modal["custom_id"], "components": []}
        resolved: JSON = {}
        for part in asked.modal["components"]:
            item = part.get("component") or part["components"][0]
            label = str(part.get("label") or item.get("label") or "")
            fallback = item.get("value", "")
            value = next(
                (
                    given
                    for name, given in values.items()
                    if item["custom_id"] == name or label.lower().replace(" ", "_").startswith(name.lower())
                ),
                fallback,
            )
            filled = {"type": item["type"], "custom_id": item["custom_id"], "id": item.get("id", 1)}
            filled |= self._filled(item["type"], value, resolved)
            wrapped = {"component": filled} if "component" in part else {"components": [filled]}
            data["components"].append({"type": part["type"], "id": part.get("id", 1)} | wrapped)
        if resolved:
            data["resolved"] = resolved
        return await self.send(WireInteraction(_SUBMIT, self.user, asked.channel, data, source=asked.source))

    def _filled(self, kind: int, value: Any, resolved: JSON) -> JSON:
        if kind == 19:
            files = [self._attach(file, resolved) for file in (value or [])]
            return {"values": files}
        if kind in {3, 5, 6, 7, 8, 22}:
            return {"values": [value] if isinstance(value, str) and value else list(value or [])}
        return {"value": value}

    # -- the dispatch -----------------------------------------------------------------------------------------------

    async def _slash(
        self, kind: int, command: str, channel: WireChannel | None, options: JSON, focused: str = ""
    ) -> WireInteraction:
        name, *subs = command.split()
        channel = channel or self.discord.channel
        found = self._command(name, 1, channel)
        data: JSON = {"id": found["id"], "name": name, "type": 1, "options": []}
        if "guild_id" in found:
            data["guild_id"] = found["guild_id"]
        place, level = data, found
        for sub in subs:
            level = next(each for each in level["options"] if each["name"] == sub)
            place["options"] = [{"name": sub, "type": level["type"], "options": []}]
            place = place["options"][0]
        known = {each["name"]: each for each in level.get("options", [])}
        resolved: JSON = {}
        for option, value in options.items():
            assert option in known, f"/{command} has no option {option}: {list(known)}"
            given = {"name": option, "type": known[option]["type"]}
            given["value"] = self._value(known[option]["type"], value, resolved)
            place["options"].append(given | ({"focused": True} if option == focused else {}))
        if resolved:
            data["resolved"] = resolved
        return await self.send(WireInteraction(kind, self.user, channel, data))

    def _value(self, kind: int, value: Any, resolved: JSON) -> Any:
        if kind == _ATTACHMENT:
            return self._attach(value, resolved)
        if kind == _USER:
            resolved.setdefault("users", {})[str(value.id)] = value.user.to_json()
            member = {key: each for key, each in value.member.to_json().items() if key not in {"user", "deaf", "mute"}}
            resolved.setdefault("members", {})[str(value.id)] = member | {"permissions": "0"}
            return str(value.id)
        if kind == _ROLE:
            resolved.setdefault("roles", {})[str(value.id)] = value.to_json()
            return str(value.id)
        if kind == _CHANNEL:
            resolved.setdefault("channels", {})[str(value.id)] = value.to_json() | {"permissions": "0"}
            return str(value.id)
        return value

    def _attach(self, value: Any, resolved: JSON) -> str:
        file = value if isinstance(value, WireFile) else WireFile(*value)
        self.discord.files[file.path] = file
        resolved.setdefault("attachments", {})[str(file.id)] = file.to_json(self.discord.url) | {"ephemeral": True}
        return str(file.id)

    def _command(self, name: str, kind: int, channel: WireChannel) -> JSON:
        """The command as the person's client knows it; a server's own comes before the one of all servers."""
        guild_id = channel.guild.id if channel.guild else None
        for scope in (guild_id, None):
            for command in self.discord.commands.get(scope, []):
                if (command.get("type", 1), command["name"]) == (kind, name):
                    return command
        raise AssertionError(f"Discord does not know /{name}; it knows {self.discord.listed(channel.guild)}")

    async def send(self, interaction: WireInteraction) -> WireInteraction:
        """Dispatch an interaction (also one that was dispatched before: Discord may repeat itself)."""
        if interaction not in self.discord.interactions:
            self.discord.interactions.append(interaction)
        await self.discord.gateway.dispatch("INTERACTION_CREATE", self.payload(interaction))
        return interaction

    def payload(self, interaction: WireInteraction) -> JSON:
        """What the gateway carries; a test may take something out of it and dispatch that."""
        channel, guild = interaction.channel, interaction.channel.guild
        made: JSON = {
            "id": str(interaction.id), "application_id": str(self.discord.application_id), "type": interaction.type,
            "token": interaction.token, "version": 1, "data": interaction.data, "channel_id": str(channel.id),
            "channel": channel.to_json(), "locale": "en-US", "entitlements": [], "context": 0 if guild else 1,
            "authorizing_integration_owners": {"0": str(guild.id)} if guild else {},
            "attachment_size_limit": _ATTACHMENT_LIMIT, "app_permissions": "0",
        }  # fmt: skip
        if guild is None:
            made["user"] = interaction.user.to_json()
        else:
            permissions = guild.permissions_of(self.member, channel)
            made |= {
                "guild_id": str(guild.id), "guild_locale": "en-US",
                "guild": {"id": str(guild.id), "locale": "en-US", "features": []},
                "member": self.member.to_json() | {"permissions": str(permissions)},
                "app_permissions": str(guild.permissions_of(guild.bot, channel)),
            }  # fmt: skip
        if interaction.source is not None:
            made["message"] = interaction.source.to_json(self.discord.url)
        return made


def person(discord: WireDiscord, name: str, guild: Any = None, *, permissions: int = 0) -> Person:
    """Add a person to a server."""
    return Person(discord, discord.add_member(name, guild, permissions=permissions))
