"""Captions are read by bytes and rows, checked once, and refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from latent_fixtures import write_video

from nas.data.captions import read_captions
from nas.errors import NasError


def texts(folder: Path, name: str, content: str | bytes) -> list[tuple[str, str]]:
    """What a captions file says: videos and captions."""
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(caption.path.name, caption.text) for caption in read_captions(folder, file)]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_only_line_ends_end_a_row(tmp_path: Path, mark: str) -> None:
    wanted = [("a.mp4", f"bars{mark}that move"), ("b.mp4", "others")]
    rows = "".join(json.dumps({"path": p, "caption": t}, ensure_ascii=mark < " ") + "\n" for p, t in wanted)
    assert texts(tmp_path, "c.jsonl", rows) == wanted
    for end in ("\n", "\r\n", "\r"):
        assert texts(tmp_path, "c.csv", end.join(["path,caption", *(f"{p},{t}" for p, t in wanted)])) == wanted


def test_a_caption_in_quotes_may_hold_lines_commas_and_quotes(tmp_path: Path) -> None:
    content = 'path,caption\na.mp4,"bars,\r\nin a ""film"""\nb.mp4,a "big" bar\n'
    assert texts(tmp_path, "c.csv", content) == [("a.mp4", 'bars,\r\nin a "film"'), ("b.mp4", 'a "big" bar')]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('a.mp4,bars\nb.mp4,"open\nc.mp4,others\n', 3),  # to the end of the file
        ('a.mp4,"open\nb.mp4,"others"\n', 2),  # to a later quote, and text behind it
        ('a.mp4,"open\nb.mp4,others"\n', 2),  # to a later quote that ends a cell: a row would be lost in silence
        ('a.mp4,"bars on a 5" screen\n', 2),
        ('a.mp4,bars\nb.mp4,"open' + "\nc.mp4,others" * 20_000, 3),  # past the csv module's limit
    ],
)
def test_an_open_quote_is_refused_by_line(tmp_path: Path, rows: str, line: int) -> None:
    with pytest.raises(NasError, match=rf"c.csv:{line}: a quote that opens in this row .*close it") as caught:
        texts(tmp_path, "c.csv", "path,caption\n" + rows)
    assert "\n" not in str(caught.value)


def test_blank_rows_and_a_last_comma_are_no_rows_and_no_column(tmp_path: Path) -> None:
    assert texts(tmp_path, "c.csv", "path,caption,\n\n,,\na.mp4,bars,\n   \n") == [("a.mp4", "bars")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.mp4,bars\n", "c.csv:1: no path or no caption column in 'a.mp4,bars'.*first line names the columns"),
        ("path;caption\na.mp4;bars\n", "c.csv:1: no path or no caption column"),
        (",path,caption\n0,a.mp4,bars\n", "c.csv:2: unknown column ''"),
        ("path,caption,caption\na.mp4,x,y\n", "c.csv:1: two columns are called 'caption'"),
        ("path,caption\na.mp4\n", "c.csv:2: the caption is empty"),
        (b"path,caption\na.mp4,caf\xe9\n", "c.csv:2: cannot be read as UTF-8 text"),
        ("path,caption\n", "holds no captions"),
        ("path,caption\n\0.mp4,x\n", "c.csv:2: .* is no path"),
        ("path,caption\na.mp4,bars\0move\n", "c.csv:2: the caption holds a NUL character"),
    ],
)
def test_a_csv_that_is_not_understood_is_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(NasError, match=message) as caught:
        texts(tmp_path, "c.csv", content)
    assert "\n" not in str(caught.value)


def test_a_list_is_several_captions_of_one_clip(tmp_path: Path) -> None:
    row = {"path": "a.mp4", "caption": ["bars move", "a test pattern"], "start": 1}
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    found = read_captions(tmp_path, tmp_path / "c.jsonl")
    assert [(c.text, c.start) for c in found] == [("bars move", 1.0), ("a test pattern", 1.0)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": {"short": "bars"}}, "the caption is an object: {'short': 'bars'}; write text, or a list"),
        ({"caption": 5}, "the caption is a number: 5"),
        ({"caption": True}, "the caption is true or false"),
        ({"caption": ["bars", 5]}, "the caption is a number: 5"),
        ({"caption": [["bars"]]}, "the caption is a list"),
        ({"caption": []}, "the caption is empty"),
        ({"caption": ["bars", " "]}, "the caption is empty"),
        ({"caption": None}, "the caption is empty"),
        ({"caption": "\ud800"}, "holds half a character"),
        ({"caption": "bars\0move"}, "holds a NUL character"),
        ({"caption": "bars", "path": ["a.mp4"]}, "the path is a list, not text"),
        ({"caption": "bars", "path": 7}, "the path is a number, not text"),
        ({"caption": "bars", "start": True}, "True is no number"),
        ({"caption": "bars", "end": "0:03"}, "'0:03' is no number"),
        ({"caption": "bars", "start": float("nan")}, "nan is no number"),
        ({"caption": "bars", "x": 10**400}, "is no number"),
    ],
)
def test_a_json_value_of_another_kind_is_refused_by_line(tmp_path: Path, row: object, message: str) -> None:
    good = json.dumps({"path": "a.mp4", "caption": "bars"})
    assert isinstance(row, dict)
    with pytest.raises(NasError, match=f"c.jsonl:3: .*{message}") as caught:
        texts(tmp_path, "c.jsonl", f"{good}\n\n{json.dumps({'path': 'a.mp4', **row})}\n")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["1" * 5000, "[" * 100_000, '{"path": "a.mp4", "caption": "x"} {}'])
def test_json_beyond_all_use_is_one_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(NasError, match="c.jsonl:1: not (JSON|an object)"):
        texts(tmp_path, "c.jsonl", line)
    with pytest.raises(NasError, match="one object a line and call it c.jsonl"):
        texts(tmp_path, "c.json", "[]")


def test_paths_stay_inside_the_folder_unless_allowed(tmp_path: Path) -> None:
    folder, other = tmp_path / "data", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    write_video(other / "v.mkv", 8)
    write_video(folder / "in.mkv", 8)
    (folder / "link.mkv").symlink_to(other / "v.mkv")
    (folder / "linked").symlink_to(other)
    (folder / "here.mkv").symlink_to("in.mkv")
    outside = ["../other/v.mkv", str(other / "v.mkv"), "link.mkv", "linked/v.mkv", "../data/../other/gone.mkv"]
    for path in outside:
        content = f"path,caption\nin.mkv,bars\n{path},bars\n"
        with pytest.raises(NasError, match=r"c.csv:3: .* leads out of the data's folder.*data.outside=true"):
            texts(folder, "c.csv", content)
        assert len(read_captions(folder, folder / "c.csv", outside=True)) == 2
    for path in ("./in.mkv", "../data/in.mkv", str(folder / "in.mkv"), "here.mkv", "gone.mkv"):
        assert texts(folder, "c.csv", f"path,caption\n{path},bars\n")
    (tmp_path / "alias").symlink_to(folder)  # the folder itself may be a link
    assert texts(tmp_path / "alias", "c.csv", "path,caption\nin.mkv,bars\n")
