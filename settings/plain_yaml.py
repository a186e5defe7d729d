"""A YAML loader for the data types of JSON. Its time and memory are linear in the text's length.

PyYAML's own loader is not safe for untrusted files: 100,000 times `[` crashes the process, and long
numbers in base 60 (`1:1:1...`) or nested merge keys take hours.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import yaml

DEEPEST: Final = 100
"""The most levels of lists and mappings. A Pod has 12."""
LONGEST_SHOWN: Final = 80
"""Characters of a value that an error message repeats."""

_PARSER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_CONSTANTS: Final = {
    text: value
    for word, value in (("true", True), ("false", False), ("null", None), ("~", None), ("", None))
    for text in (word, word.capitalize(), word.upper())
}
_NUMBERS: Final[tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...]] = (
    (re.compile(r"-?(0|[1-9][0-9]{0,17})"), int),
    (re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?([eE][-+]?[0-9]{1,2})?"), float),
)
_STRING: Final = "tag:yaml.org,2002:str"


class YamlError(ValueError):
    """The text cannot be read; the error names the reason and the position."""


def documents(text: str) -> Iterator[Any]:
    """Yield every document, with the types of `json.loads`. Raises `YamlError`.

    An alias gives the same object again. So do not walk through the whole result of an untrusted
    text: it may be far larger than the text, or contain itself.
    """
    parser = _PARSER(text)
    try:
        while (event := parser.get_event()) is not None:
            if isinstance(event, yaml.DocumentStartEvent):
                yield _document(parser)
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from error
    finally:
        parser.dispose()


def document(text: str) -> Any:
    """The only document of a text; None where there is none. Raises `YamlError`."""
    found = list(documents(text))
    if len(found) > 1:
        raise YamlError(f"{len(found)} documents where one was expected")
    return found[0] if found else None


def shown(value: Any) -> str:
    """A value for an error message, shortened if necessary."""
    match value:
        case list():
            return "a list"
        case dict():
            return "a mapping"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


class _Open:
    """A list or a mapping whose end has not come yet."""

    def __init__(self, content: list[Any] | dict[str, Any]) -> None:
        self.content = content
        self.key: str | None = None

    def take(self, value: Any, event: Any) -> None:
        if isinstance(self.content, list):
            self.content.append(value)
        elif self.key is not None:
            self.content[self.key] = value
            self.key = None
        elif not isinstance(event, yaml.ScalarEvent):
            raise _at(event, "a key that is not a string")
        elif event.value == "<<" and event.implicit[0]:
            raise _at(event, "merge keys (<<) are not read here")
        else:
            self.key = event.value


def _document(parser: Any) -> Any:
    anchors: dict[str, Any] = {}
    root = _Open([])
    stack = [root]
    while not isinstance(event := parser.get_event(), yaml.DocumentEndEvent):
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise _at(event, f"the alias *{event.anchor} has no anchor")
            stack[-1].take(anchors[event.anchor], event)
            continue
        opened = None
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        else:
            opened = _Open([] if isinstance(event, yaml.SequenceStartEvent) else {})
            value = opened.content
        if event.anchor:
            anchors[event.anchor] = value
        stack[-1].take(value, event)
        if opened is not None:
            stack.append(opened)
            if len(stack) > DEEPEST:
                raise _at(event, f"more than {DEEPEST} levels of lists and mappings")
    return root.content[0]  # type: ignore[index]


def _scalar(event: Any) -> Any:
    text: str = event.value
    plain, _ = event.implicit
    if not plain:
        if event.tag not in {None, "!", _STRING}:
            raise _at(event, f"the tag {event.tag} is not read here")
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] in "-0123456789":
        for pattern, made in _NUMBERS:
            if pattern.fullmatch(text):
                return made(text)
    return text


def _at(event: Any, problem: str) -> YamlError:
    mark = event.start_mark
    return YamlError(f"line {mark.line + 1}, column {mark.column + 1}: {problem}")
