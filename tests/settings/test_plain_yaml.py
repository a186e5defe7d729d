"""YAML by strangers: read as JSON would be, or refused, at a cost that its length bounds."""

import json
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from settings.plain_yaml import DEEPEST, YamlError, document, documents, shown

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default, creationTimestamp: 2026-01-02T03:04:05Z,
  labels: &l {x: y}}
spec:
  nodeName: node1  # here
  hostNetwork: false
  containers:
  - {name: c, args: [--x, "*", 1.5, -3, ~], labels: *l}
  - name: |
      d
"""


def test_what_json_has_is_read_as_json_reads_it():
    assert document(POD) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "a",
            "namespace": "default",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"x": "y"},
        },
        "spec": {
            "nodeName": "node1",
            "hostNetwork": False,
            "containers": [
                {"name": "c", "args": ["--x", "*", 1.5, -3, None], "labels": {"x": "y"}},
                {"name": "d\n"},
            ],
        },
    }
    assert list(documents("a: 1\n--- b\n---\n")) == [{"a": 1}, "b", None]
    assert document("") is None
    assert document("!!str 7") == "7"


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**17), 10**17)
        | st.floats(-1e9, 1e9).map(lambda x: round(x, 3))
        | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("abc", min_size=1), inner),
    )
)
def test_json_and_yaml_of_a_value_give_the_value(value):
    assert document(json.dumps(value, ensure_ascii=False)) == value
    assert document(yaml.safe_dump(value, allow_unicode=True)) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 1_000_000, "line 1, column 100: more than 100 levels"),
        ("- " * 1_000_000, "more than 100 levels"),
        ("{a: " * 1_000_000, "more than 100 levels"),
        ("a: *x", r"line 1, column 4: the alias \*x has no anchor"),
        ("a: &x\n  <<: *x", r"line 2, column 3: merge keys \(<<\) are not read here"),
        ("? [a]\n: b", "line 1, column 3: a key that is not a string"),
        ("a: !!python/name:os.system x", "the tag tag:yaml.org,2002:python/name:os.system"),
        ("a: !!binary x", "the tag tag:yaml.org,2002:binary is not read here"),
        ("a: [1\nb: 2", "line 1, column 4"),
        ("\0", "control characters"),
        ("a\n---\nb", "2 documents where one"),
    ],
)
def test_what_is_refused(text, problem):
    with pytest.raises(YamlError, match=problem):
        document(text)


@pytest.mark.parametrize(
    "number",
    [":".join("1" * 200_000), ":".join("1" * 400) + ".5", "9" * 100_000, "1e999", "0x1f", "017"],
    ids=lambda number: number[:8],
)
def test_a_number_that_is_none_of_json_s_is_text(number):
    assert document(number) == number


def test_aliases_cost_nothing():
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{f'*a{n - 1}, ' * 10}]" for n in range(1, 90)]
    found = document("\n".join(lines))
    assert shown(found["a89"]) == "a list"
    assert document("a: &a [*a]")["a"][0] is not None
    assert shown("x" * 1000) == repr("x" * 1000)[:80] + "..."


def test_the_deepest():
    assert document("[" * (DEEPEST - 1) + "]" * (DEEPEST - 1))


@given(st.binary(max_size=200) | st.text("[]{}&*!|>'\"%@`,?:-#<~ ab1\n", max_size=200))
def test_whatever_the_text_it_is_read_or_refused(text):
    with suppress(YamlError):
        list(documents(text if isinstance(text, str) else text.decode(errors="replace")))


@given(st.integers(0, len(POD)), st.integers(0, 9), st.text("[]{}&*!|>:-\n \tx", max_size=5))
def test_a_mutated_pod_is_read_or_refused(at, removed, put_in):
    with suppress(YamlError):
        list(documents(POD[:at] + put_in + POD[at + removed :]))
