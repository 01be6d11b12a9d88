"""Checks payloads against Discord's documented limits; the errors are nested as in Discord's answer (code 50035)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.wire.wire_state import COMPONENTS_V2, JSON, texts_of, walk

MAX_FILES, MAX_FILE_BYTES, MAX_REQUEST_BYTES = 10, 10 * 1024**2, 25 * 1024**2
_MAX_COMPONENTS, _MAX_TEXT, _MAX_BYTES = 40, 4000, 10_170
_MENU_NAME = re.compile(r"^.{1,32}$")
_SLASH_NAME = re.compile(r"^[-_'\w]{1,32}$")

ACTION_ROW, BUTTON, STRING_SELECT, TEXT_INPUT = 1, 2, 3, 4
SECTION, TEXT_DISPLAY, THUMBNAIL, GALLERY, FILE, SEPARATOR, CONTAINER = 9, 10, 11, 12, 13, 14, 17
LABEL, FILE_UPLOAD, RADIO_GROUP, CHECKBOX_GROUP, CHECKBOX = 18, 19, 21, 22, 23
_SELECTS = {STRING_SELECT, 5, 6, 7, 8}
_IN_CONTAINER = {ACTION_ROW, TEXT_DISPLAY, SECTION, GALLERY, SEPARATOR, FILE}
_TOP_LEVEL_V2 = _IN_CONTAINER | {CONTAINER}
_IN_LABEL = {TEXT_INPUT, FILE_UPLOAD, RADIO_GROUP, CHECKBOX_GROUP, CHECKBOX} | _SELECTS

#: Where in the payload, the code, and the sentence.
Problem = tuple[tuple[str, ...], str, str]


class Refused(Exception):
    """An answer of Discord that is an error."""

    def __init__(self, status: int, code: int, message: str, **fields: Any) -> None:
        self.status, self.code, self.fields = status, code, fields
        self.message = message
        super().__init__(f"{status} {code}: {message}")

    @property
    def body(self) -> str:
        return json.dumps({"message": self.message, "code": self.code, **self.fields})


class TooComplex(Refused):
    """Components of more bytes than Discord can store: it answers 500 (discord-api-docs#8554)."""

    def __init__(self) -> None:
        super().__init__(500, 0, "500: Internal Server Error")


def invalid_form(problems: list[Problem]) -> Refused:
    """Make Discord's answer to an invalid payload."""
    errors: JSON = {}
    for path, code, message in problems:
        place = errors
        for key in path:
            place = place.setdefault(key, {})
        place.setdefault("_errors", []).append({"code": code, "message": message})
    return Refused(400, 50035, "Invalid Form Body", errors=errors)


def check_message(payload: JSON, *, file_names: list[str], kept_names: tuple[str, ...] = (), is_edit: bool) -> None:
    """Raise `Refused` unless a message may be made, or edited, with this payload.

    Args:
        payload: As it came, or for an edit merged with the flags of the message.
        file_names: Of the files that come with it.
        kept_names: Of the files that the message has already.
        is_edit: An edit may leave out everything.
    """
    problems: list[Problem] = []
    is_v2 = bool(int(payload.get("flags") or 0) & COMPONENTS_V2)
    components = payload.get("components") or []
    if is_v2 and (payload.get("content") or payload.get("embeds") or payload.get("poll")):
        problems.append(
            ((), "MESSAGE_CANNOT_USE_LEGACY_FIELDS_WITH_COMPONENTS_V2", "content and embeds cannot be used here")
        )
    is_empty = not (payload.get("content") or payload.get("embeds") or components or file_names)
    if is_empty and not is_edit:
        raise Refused(400, 50006, "Cannot send an empty message")
    problems += _length(payload.get("content"), ("content",), 0, 2000)
    problems += _embeds(payload.get("embeds") or [])
    problems += _nonce(payload)
    problems += _components(components, is_v2=is_v2, names={*file_names, *kept_names})
    problems += _attachments(payload, file_names)
    if problems:
        raise invalid_form(problems)
    if is_v2 and len(json.dumps(components, ensure_ascii=False).encode()) > _MAX_BYTES:
        raise TooComplex


def check_modal(data: JSON) -> None:
    """Raise `Refused` unless this is a modal."""
    problems = [*_length(data.get("title"), ("title",), 1, 45), *_custom_id(data, ())]
    components = data.get("components") or []
    if not 1 <= len(components) <= 5:
        problems.append((("components",), "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 5 in length."))
    for index, each in enumerate(components):
        path = ("components", str(index))
        if each["type"] == LABEL:
            problems += _length(each.get("label"), (*path, "label"), 1, 45)
            problems += _length(each.get("description"), (*path, "description"), 0, 100)
            problems += _modal_input(each["component"], (*path, "component"))
        elif each["type"] == ACTION_ROW:
            problems += _modal_input(each["components"][0], (*path, "components", "0"))
        elif each["type"] != TEXT_DISPLAY:
            problems.append((path, "UNION_TYPE_CHOICES", 'Value of field "type" must be one of (1, 10, 18).'))
    problems += _unique_ids(components)
    if problems:
        raise invalid_form(problems)


def _modal_input(item: JSON, path: tuple[str, ...]) -> Iterator[Problem]:
    if item["type"] not in _IN_LABEL:
        yield (*path, "type"), "UNION_TYPE_CHOICES", "This component cannot be used here."
        return
    yield from _custom_id(item, path)
    if item["type"] == TEXT_INPUT:
        yield from _length(item.get("value"), (*path, "value"), 0, int(item.get("max_length") or 4000))
        yield from _length(item.get("placeholder"), (*path, "placeholder"), 0, 100)
    if item["type"] in {RADIO_GROUP, CHECKBOX_GROUP} and not item["type"] - 20 <= len(item.get("options", [])) <= 10:
        yield (*path, "options"), "BASE_TYPE_BAD_LENGTH", "Must be 10 or fewer in length."
    if item["type"] == STRING_SELECT:
        yield from _select(item, path)


def check_thread(payload: JSON) -> None:
    """Raise `Refused` unless a thread may be started with this payload."""
    problems = list(_length(payload.get("name"), ("name",), 1, 100))
    if payload.get("auto_archive_duration", 60) not in {60, 1440, 4320, 10080}:
        problems.append((("auto_archive_duration",), "BASE_TYPE_CHOICES", "Value must be one of (60, 1440, ...)"))
    if problems:
        raise invalid_form(problems)


def check_choices(choices: list[JSON]) -> None:
    """Raise `Refused` unless these may answer an autocomplete."""
    problems: list[Problem] = []
    if len(choices) > 25:
        problems.append((("data", "choices"), "BASE_TYPE_MAX_LENGTH", "Must be 25 or fewer in length."))
    for index, choice in enumerate(choices):
        problems += _length(str(choice.get("name", "")), ("data", "choices", str(index), "name"), 1, 100)
        if isinstance(choice.get("value"), str):
            problems += _length(choice["value"], ("data", "choices", str(index), "value"), 1, 100)
    if problems:
        raise invalid_form(problems)


def check_commands(commands: list[JSON]) -> None:
    """Raise `Refused` unless an application may have these commands in one scope."""
    problems: list[Problem] = []
    for kind, most in ((1, 100), (2, 15), (3, 15)):
        names = [each["name"] for each in commands if each.get("type", 1) == kind]
        if len(names) > most:
            raise Refused(400, 30032, f"Maximum number of application commands reached ({most}).")
        if len(set(names)) < len(names):
            raise invalid_form(
                [((), "APPLICATION_COMMANDS_DUPLICATE_NAME", "Application command names must be unique")]
            )
    for index, command in enumerate(commands):
        problems += _command(command, (str(index),))
        if _characters(command) > 8000:
            problems.append(((str(index),), "APPLICATION_COMMAND_TOO_LARGE", "Command exceeds maximum size (8000)"))
    if problems:
        raise invalid_form(problems)


def _command(command: JSON, path: tuple[str, ...]) -> Iterator[Problem]:
    is_slash = command.get("type", 1) == 1
    name = command.get("name", "")
    if not (_SLASH_NAME if is_slash else _MENU_NAME).match(name) or (is_slash and name != name.lower()):
        yield (*path, "name"), "APPLICATION_COMMAND_INVALID_NAME", "Command name is invalid"
    yield from _length(command.get("description"), (*path, "description"), int(is_slash), 100)
    options = command.get("options", [])
    if len(options) > 25:
        yield (*path, "options"), "BASE_TYPE_MAX_LENGTH", "Must be 25 or fewer in length."
    seen_optional = False
    for index, option in enumerate(options):
        here = (*path, "options", str(index))
        yield from _command(option | {"type": 1}, here)
        if len(option.get("choices") or []) > 25:
            yield (*here, "choices"), "BASE_TYPE_MAX_LENGTH", "Must be 25 or fewer in length."
        for number, choice in enumerate(option.get("choices") or []):
            yield from _length(str(choice["name"]), (*here, "choices", str(number), "name"), 1, 100)
        if option["type"] > 2 and option.get("required") and seen_optional:
            yield here, "APPLICATION_COMMAND_OPTIONS_REQUIRED_INVALID", "Required options must be placed before others"
        seen_optional = seen_optional or not option.get("required")


def _characters(command: JSON) -> int:
    own = len(command.get("name", "")) + len(command.get("description", "") or "")
    values = sum(len(str(each["name"])) + len(str(each["value"])) for each in command.get("choices") or [])
    return own + values + sum(_characters(option) for option in command.get("options", []))


def _length(value: Any, path: tuple[str, ...], least: int, most: int) -> Iterator[Problem]:
    length = len(value or "")
    if length < least:
        yield path, "BASE_TYPE_REQUIRED", "This field is required"
    elif length > most:
        yield path, "BASE_TYPE_MAX_LENGTH", f"Must be {most} or fewer in length."


def _nonce(payload: JSON) -> Iterator[Problem]:
    if payload.get("nonce") is not None and len(str(payload["nonce"])) > 25:
        yield ("nonce",), "NONCE_TYPE_TOO_LONG", "Must be 25 or fewer in length."


def _attachments(payload: JSON, file_names: list[str]) -> Iterator[Problem]:
    listed = payload.get("attachments")
    if len(file_names) > MAX_FILES or len(listed or []) > MAX_FILES:
        yield ("attachments",), "BASE_TYPE_MAX_LENGTH", "Must be 10 or fewer in length."
    for index, each in enumerate(listed or []):
        yield from _length(each.get("description"), ("attachments", str(index), "description"), 0, 1024)


_EMBED_LIMITS = {"title": 256, "description": 4096}


def _embeds(embeds: list[JSON]) -> Iterator[Problem]:
    if len(embeds) > 10:
        yield ("embeds",), "BASE_TYPE_MAX_LENGTH", "Must be 10 or fewer in length."
    total = 0
    for index, embed in enumerate(embeds):
        path = ("embeds", str(index))
        parts: list[tuple[tuple[str, ...], Any, int]] = [
            ((*path, key), embed.get(key), most) for key, most in _EMBED_LIMITS.items()
        ]
        parts += [((*path, "footer", "text"), (embed.get("footer") or {}).get("text"), 2048)]
        parts += [((*path, "author", "name"), (embed.get("author") or {}).get("name"), 256)]
        fields = embed.get("fields") or []
        if len(fields) > 25:
            yield (*path, "fields"), "BASE_TYPE_MAX_LENGTH", "Must be 25 or fewer in length."
        for number, each in enumerate(fields):
            parts += [((*path, "fields", str(number), "name"), each.get("name"), 256)]
            parts += [((*path, "fields", str(number), "value"), each.get("value"), 1024)]
        for where, text, most in parts:
            total += len(text or "")
            yield from _length(text, where, 0, most)
    if total > 6000:
        yield ("embeds",), "MAX_EMBED_SIZE_EXCEEDED", "Embed size exceeds maximum size of 6000"


def _components(components: list[JSON], *, is_v2: bool, names: set[str]) -> Iterator[Problem]:
    count = len(walk(components))
    if is_v2 and count > _MAX_COMPONENTS:
        yield ("components",), "COMPONENT_MAX_TOTAL", f"The number of components is {count}, over the maximum of 40."
    if not is_v2 and len(components) > 5:
        yield ("components",), "BASE_TYPE_MAX_LENGTH", "Must be 5 or fewer in length."
    if sum(map(len, texts_of(components))) > _MAX_TEXT:
        yield (
            ("components",),
            "COMPONENT_DISPLAYABLE_TEXT_SIZE_EXCEEDED",
            "The displayable text exceeds 4000 characters.",
        )
    for index, each in enumerate(components):
        path = ("components", str(index))
        if each.get("type") not in (_TOP_LEVEL_V2 if is_v2 else {ACTION_ROW}):
            yield (*path, "type"), "UNION_TYPE_CHOICES", 'Value of field "type" must be one of the allowed ones.'
        else:
            yield from _component(each, path, names)
    yield from _unique_ids(components)


def _unique_ids(components: list[JSON]) -> Iterator[Problem]:
    seen: set[str] = set()
    for each in walk(components):
        custom_id = each.get("custom_id")
        if custom_id in seen:
            yield ("components",), "COMPONENT_CUSTOM_ID_DUPLICATED", f"Component custom id {custom_id} is duplicated"
        if custom_id is not None:
            seen.add(custom_id)
    numbers = [each["id"] for each in walk(components) if each.get("id")]
    if len(numbers) != len(set(numbers)):
        yield ("components",), "COMPONENT_ID_DUPLICATED", "Component ids must be unique"
    if any(not -(2**31) <= number < 2**31 for number in numbers):
        yield ("components",), "NUMBER_TYPE_MAX", "id must be a 32 bit integer"


def _component(item: JSON, path: tuple[str, ...], names: set[str]) -> Iterator[Problem]:
    kind = item.get("type")
    if kind == ACTION_ROW:
        yield from _action_row(item, path)
    elif kind == CONTAINER:
        yield from _container(item, path, names)
    elif kind == SECTION:
        yield from _section(item, path, names)
    elif kind == TEXT_DISPLAY:
        yield from _length(item.get("content"), (*path, "content"), 1, _MAX_TEXT)
    elif kind == GALLERY:
        yield from _gallery(item, path, names)
    elif kind == FILE:
        url = item["file"]["url"]
        if not url.startswith("attachment://"):
            yield (*path, "file", "url"), "URL_TYPE_INVALID_SCHEME", "Only attachment:// is supported here."
        yield from _media(url, (*path, "file", "url"), names)


def _action_row(item: JSON, path: tuple[str, ...]) -> Iterator[Problem]:
    children = item.get("components") or []
    selects = [each for each in children if each["type"] in _SELECTS]
    if not 1 <= len(children) <= 5 or (selects and len(children) > 1):
        yield (*path, "components"), "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 5 in length."
    for index, child in enumerate(children):
        here = (*path, "components", str(index))
        if child["type"] == BUTTON:
            yield from _button(child, here)
        elif child["type"] in _SELECTS:
            yield from _select(child, here)
        else:
            yield (*here, "type"), "UNION_TYPE_CHOICES", 'Value of field "type" must be one of (2, 3, 5, 6, 7, 8).'


def _button(item: JSON, path: tuple[str, ...]) -> Iterator[Problem]:
    yield from _length(item.get("label"), (*path, "label"), int(not item.get("emoji")), 80)
    if item.get("style") == 5:
        yield from _length(item.get("url"), (*path, "url"), 1, 512)
    else:
        yield from _custom_id(item, path)


def _select(item: JSON, path: tuple[str, ...]) -> Iterator[Problem]:
    yield from _custom_id(item, path)
    yield from _length(item.get("placeholder"), (*path, "placeholder"), 0, 150)
    options = item.get("options") or []
    if item["type"] == STRING_SELECT and not 1 <= len(options) <= 25:
        yield (*path, "options"), "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 25 in length."
    if len({each["value"] for each in options}) < len(options):
        yield (
            (*path, "options"),
            "SELECT_COMPONENT_OPTION_VALUE_DUPLICATED",
            "The specified option value is already used",
        )
    for index, option in enumerate(options):
        for key, least in (("label", 1), ("value", 1), ("description", 0)):
            yield from _length(option.get(key), (*path, "options", str(index), key), least, 100)


def _custom_id(item: JSON, path: tuple[str, ...]) -> Iterator[Problem]:
    yield from _length(item.get("custom_id"), (*path, "custom_id"), 1, 100)


def _container(item: JSON, path: tuple[str, ...], names: set[str]) -> Iterator[Problem]:
    children = item.get("components") or []
    if not children:
        yield (*path, "components"), "BASE_TYPE_REQUIRED", "This field is required"
    for index, child in enumerate(children):
        here = (*path, "components", str(index))
        if child.get("type") not in _IN_CONTAINER:
            yield (*here, "type"), "UNION_TYPE_CHOICES", "This component cannot be in a container."
        else:
            yield from _component(child, here, names)


def _section(item: JSON, path: tuple[str, ...], names: set[str]) -> Iterator[Problem]:
    children = item.get("components") or []
    if not 1 <= len(children) <= 3:
        yield (*path, "components"), "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 3 in length."
    for index, child in enumerate(children):
        yield from _component(child, (*path, "components", str(index)), names)
    accessory = item.get("accessory") or {}
    if accessory.get("type") == BUTTON:
        yield from _button(accessory, (*path, "accessory"))
    elif accessory.get("type") == THUMBNAIL:
        yield from _media(accessory["media"]["url"], (*path, "accessory", "media", "url"), names)
        yield from _length(accessory.get("description"), (*path, "accessory", "description"), 0, 1024)
    else:
        yield (*path, "accessory"), "BASE_TYPE_REQUIRED", "This field is required"


def _gallery(item: JSON, path: tuple[str, ...], names: set[str]) -> Iterator[Problem]:
    items = item.get("items") or []
    if not 1 <= len(items) <= 10:
        yield (*path, "items"), "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 10 in length."
    for index, each in enumerate(items):
        here = (*path, "items", str(index))
        yield from _length(each.get("description"), (*here, "description"), 0, 1024)
        yield from _media(each["media"]["url"], (*here, "media", "url"), names)


def _media(url: str, path: tuple[str, ...], names: set[str]) -> Iterator[Problem]:
    scheme, _, name = url.partition("://")
    if scheme == "attachment" and name not in names:
        code = "UNFURLED_MEDIA_ITEM_REFERENCED_ATTACHMENT_NOT_FOUND"
        yield path, code, f"The referenced attachment for the unfurled media item was not found: {url}"
    elif scheme not in {"attachment", "http", "https"}:
        yield path, "URL_TYPE_INVALID_SCHEME", "Scheme must be one of ('http', 'https', 'attachment')."
