"""How data sets are named."""

import pytest

from dllm.data.spec import Source, parse_spec, read_sources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a", {})),
        (" a/b [x:1_000, y:z] ", ("a/b", {"x": 1000, "y": "z"})),
        ("a[]", ("a", {})),
        (" a=b, n = 5 ", (None, {"a": "b", "n": "5"})),
        ("data/year=2024[train:5]", ("data/year=2024", {"train": 5})),
    ],
)
def test_specifications(text, expected):
    assert parse_spec(text) == expected


def test_several_sources():
    one, two, three = read_sources("a/b[train:5_000,test:100] + c[name:all|lang:x] | d[by:line]".replace("|l", ",l"))
    assert one == Source(name="a/b", counts={"train": 5000, "test": 100})
    assert two == Source(name="c", part="all", language="x")
    assert three == Source(name="d", unit="line")


def test_weights_are_numbers():
    assert [source.weight for source in read_sources("a[weight:3]|b[weight:0.5,train:7]")] == [3.0, 0.5]


def test_a_sign_in_a_name_that_exists(tmp_path):
    (tmp_path / "c++").mkdir()
    text = f"{tmp_path}/c++[train:5]"
    assert read_sources(text) == [Source(name=f"{tmp_path}/c++", counts={"train": 5})]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, "expected the name of a data set"),
        ("", "expected the name of a data set"),
        ("a + ", "expected name or name"),
        ("a[train:1", "expected name or name"),
        ("a[train]", "expected key:value"),
        ("train=5", "settings alone"),
        ("a[train:_]", "'train' got '_'"),
        ("a[wieght:0.5]", "'wieght' got '0.5' .did you mean weight"),
        ("a[train:0]", "at least 1 row, got 0"),
        ("a[weight:0]", "positive number, got 0"),
        ("a[weight:nan]", "positive number, got nan"),
        ("a[weight:heavy]", "positive number, got 'heavy'"),
        ("a[by:word]", "paragraph, line, document, got 'word'"),
        ("a[weight:2]+b", "weight for each of its data sets, got none for b"),
    ],
)
def test_what_cannot_be_read(text, rule):
    with pytest.raises(ValueError, match=rule):
        read_sources(text)
