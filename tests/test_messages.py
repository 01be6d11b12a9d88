"""Every message is a literal whose placeholders are filled, and has a translation with the same placeholders."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

from trainer.protocol.text import ENGLISH, LANGUAGES, LOCALE_DIR, duration, listed, ngettext, rough_duration, speaking

ROOT = Path(__file__).parents[1]
TRANSLATED = [language for language in LANGUAGES if language != ENGLISH]


@cache
def sources() -> dict[str, ast.Module]:
    """All modules that have messages, parsed, by their path."""
    paths = [path for package in ("bot", "trainer") for path in (ROOT / package).rglob("*.py")]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    return {path: ast.parse(text) for path, text in texts.items() if re.search(r"\b(_|ngettext)\(", text)}


def is_message(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"_", "ngettext"}


@cache
def calls() -> list[tuple[str, ast.Call, int]]:
    """All calls of `_` and `ngettext`, with their place and the number of their messages."""
    return [
        (f"{path}:{node.lineno}", node, 2 if ast.unparse(node.func) == "ngettext" else 1)
        for path, tree in sources().items()
        if not path.endswith("/text.py")
        for node in ast.walk(tree)
        if is_message(node)
    ]


def test_messages_are_literals() -> None:
    assert [place for place, call, count in calls() if not all(is_literal(each) for each in call.args[:count])] == []


#: What a template says without a message: names that every language has.
NAMES = frozenset({"Darkroom", "SHA", "sha", "python", "trainer", "report"})


def words_outside_of_messages(template: str) -> set[str]:
    """The words that a page shows whatever its language: outside of tags, expressions, styles and scripts."""
    shown = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<(style|script)\b.*?</\1>", " ", template, flags=re.DOTALL)
    spoken = re.findall(r'\b(?:title|alt|aria-label|placeholder)="([^"]*)"', shown)
    return set(re.findall(r"[A-Za-z]{3,}", re.sub(r"<[^>]*>|[?&\w;]+=|&\w+;", " ", shown) + " ".join(spoken)))


def test_templates_say_nothing_outside_of_messages() -> None:
    templates = [path for package in ("bot", "trainer") for path in (ROOT / package).rglob("*.j2")]
    assert templates
    found = {path.name: words_outside_of_messages(path.read_text()) - NAMES for path in templates}
    assert {name: words for name, words in found.items() if words} == {}


def test_placeholders_are_filled() -> None:
    wrong = []
    for place, call, count in calls():
        keywords = {keyword.arg or "**" for keyword in call.keywords}
        if "**" in keywords or not all(is_literal(each) for each in call.args[:count]):
            continue
        filled = keywords | ({"n"} if count == 2 else set())
        used = {name for each in call.args[:count] for name in placeholders(ast.literal_eval(each))}
        # Without values, `_` does not format: braces are text.
        if (used != keywords and count == 1 and keywords) or (count == 2 and not used <= filled) or keywords - used:
            wrong.append(f"{place}: {sorted(used ^ keywords)}")
    assert wrong == []


@cache
def messages() -> frozenset[tuple[str, ...]]:
    """All messages of the source: one string each, or a singular and a plural."""
    found: set[tuple[str, ...]] = set()
    for package in ("bot", "trainer"):
        for _file, _line, message, _comments, _context in extract_from_dir(
            ROOT / package,
            method_map=[("**.py", "recipes.messages:extract_python"), ("**.j2", "jinja2")],
            keywords={"_": None, "N_": None, "ngettext": (1, 2)},
        ):
            found.add((message,) if isinstance(message, str) else tuple(message or ()))
    return frozenset(found)


def translations(language: str) -> dict[tuple[str, ...], tuple[str, ...]]:
    with (LOCALE_DIR / language / "LC_MESSAGES" / "darkroom.po").open("rb") as file:
        catalog = read_po(file, locale=language)
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for message in catalog:
        if message.id:
            ids = (message.id,) if isinstance(message.id, str) else tuple(message.id)
            texts = (message.string,) if isinstance(message.string, str) else tuple(message.string or ())
            found[ids] = () if message.fuzzy else texts
    return found


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_message_has_a_translation_and_no_other(language: str) -> None:
    known = translations(language)
    assert sorted(messages() - {ids for ids, texts in known.items() if all(texts) and texts}) == []
    assert sorted(known.keys() - messages()) == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_translation_has_the_placeholders_and_the_markup_of_its_message(language: str) -> None:
    wrong: list[tuple[tuple[str, ...], str]] = []
    for ids, texts in translations(language).items():
        wanted = {shape(each) for each in ids}
        # `{n}` may be left out of a singular.
        wrong += [(ids, text) for text in texts if shape(text) not in wanted and len(ids) == 1]
        wrong += [(ids, text) for text in texts if len(ids) == 2 and not fields(text) - {"n"} <= fields(ids[1])]
    assert wrong == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_button_has_one_name_in_all_sentences(language: str) -> None:
    known = translations(language)
    names = {ids[0]: texts[0] for ids, texts in known.items() if len(ids) == 1}
    wrong = [
        (name, text)
        for ids, texts in known.items()
        for text in texts
        for name in re.findall(r"[\[“]([A-Z][A-Za-z ]+…?)[\]”]", ids[0])
        if name in names and names[name].strip() not in text
    ]
    assert wrong == []


def test_chinese_has_the_punctuation_of_chinese() -> None:
    """A comma, colon, bracket or quotation mark beside a Chinese letter is as wide as the letter."""
    narrow = re.compile(r"[\u4e00-\u9fff](?:[,;!?](?!\w)|:(?!\w)|[(\"])|[)\"][\u4e00-\u9fff]|[\u4e00-\u9fff]\.{3}")
    assert [text for texts in translations("zh_CN").values() for text in texts if narrow.search(text)] == []


def test_numbers_and_lists_are_translated() -> None:
    with speaking("zh_CN"):
        assert duration(291) == "4 分 51 秒"
        assert rough_duration(7500) == "2 小时 05 分"
        assert listed(["a", "b", "c"]) == "a、b、c"
        assert ngettext("{n} image", "{n} images", 1) == ngettext("{n} image", "{n} images", 1).replace("images", "")
    assert duration(291) == "4 min 51 s"


def fields(message: str) -> set[str]:
    """The placeholders of a message, with their formats."""
    if "{" not in message:
        return set()
    parsed = [each for each in string.Formatter().parse(message) if each[1] is not None]
    return {f"{name}{f'!{conversion}' if conversion else ''}:{spec}" for _text, name, spec, conversion in parsed}


def shape(message: str) -> tuple[object, ...]:
    """What a translation must keep: placeholders, Markdown at the begin, bold parts, code and line ends."""
    begin = re.match(r"(#+ |-# |\n)?", message)
    return (
        frozenset(fields(message)),
        begin.group() if begin else "",
        message.count("**"),
        tuple(sorted(re.findall(r"`[^`]+`", message))),
        message.count("\n"),
    )


def is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def placeholders(message: str) -> set[str]:
    return {name.split(".")[0].split("[")[0] for _, name, _, _ in string.Formatter().parse(message) if name}


def test_nothing_is_translated_at_import() -> None:
    """A module is imported once, and the language differs from task to task."""
    early = [
        f"{path}:{node.lineno}"
        for path, tree in sources().items()
        for node in outside_functions(tree)
        if is_message(node)
    ]
    assert early == []


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: its body and those of its classes, decorators and defaults."""
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        evaluated: Iterable[ast.AST] = (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults))
    else:
        yield node
        evaluated = ast.iter_child_nodes(node)
    for each in evaluated:
        yield from outside_functions(each)
