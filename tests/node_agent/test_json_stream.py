"""Held against the parser that it stands in for."""

import json

import ovs.json
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.json_stream import Parser

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=4)


def received(make, pieces: list[str]) -> list[object]:
    """As ovs.jsonrpc.Connection.recv goes about it."""
    found = []
    parser = None
    for piece in pieces:
        left = piece
        while left:
            parser = parser or make()
            left = left[parser.feed(left) :]
            if parser.is_done():
                found.append(parser.finish())
                parser = None
    return found


@given(OBJECTS, st.lists(st.integers(1, 40), max_size=30), st.sampled_from(["", "\n", " "]))
def test_whatever_the_pieces_the_objects_are_the_same(objects, sizes, between):
    text = between.join(map(json.dumps, objects))
    pieces, rest = [], text
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    pieces.append(rest)
    assert received(Parser, pieces) == objects == received(ovs.json.Parser, pieces)


@pytest.mark.parametrize("text", ['{"a": }', "{,}", '{"a" 1}', "[}", '{"a": nul}'])
def test_what_is_no_json_is_told(text):
    problem, following = received(Parser, [text, '{"more": 1}'])
    assert isinstance(problem, str)
    assert following == {"more": 1}
