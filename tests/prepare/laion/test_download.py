"""Rounds, reasons and reports, with img2dataset replaced by a function that answers as a test wants.

test_img2dataset.py runs the real one.
"""

import csv
import errno
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from made import rows_of, write_rows, write_table

from lrvsf.prepare.laion import download as step
from lrvsf.prepare.laion import url_lists
from lrvsf.prepare.laion.download import download
from lrvsf.prepare.laion.outcomes import outcomes, reason, shard_sizes
from lrvsf.prepare.laion.url_lists import list_files, write_list


@pytest.fixture
def make_list(tmp_path):
    """`make_list(urls)`: a list as the step `urls` writes it, three URLs a file; product ids are the last parts."""

    def make(urls, folder="urls"):
        with write_list(tmp_path / folder) as written:
            for url in urls:
                row = {"product_id": url.split("/")[-1], "type": "SIMPLE", "split": "train", "category": None}
                written.add({"url": url, **row, "captions": ["a", "b"]})
        return tmp_path / folder

    return make


@pytest.fixture(autouse=True)
def three_rows_a_file(monkeypatch):
    monkeypatch.setattr(url_lists, "FILE_ROWS", 3)


@pytest.fixture
def web(monkeypatch):
    """`web[url]` is what each round gets in turn, the last for ever: "ok", an error message, or None, when img2dataset
    records nothing. `web["asked"]` is what was asked for, round by round."""
    answers = {"asked": []}

    def fake(python, settings, sizes, log, label):
        round_number = int(label.split()[-1])
        folder = Path(settings["output_folder"])
        rows = [row for file in list_files(Path(settings["url_list"])) for row in rows_of(file)]
        answers["asked"].append([row["url"] for row in rows])
        answers["columns"] = settings["save_additional_columns"]
        start = 0
        for shard, size in enumerate(sizes):
            written = []
            for place, row in enumerate(rows[start : start + size]):
                turns = answers[row["url"]]
                answer = turns[min(round_number, len(turns)) - 1]
                ok = answer == "ok"
                written.append(
                    {
                        **row,
                        "key": f"{shard * 10 + place:06d}",
                        "status": "success" if ok else "failed_to_download",
                        "error_message": None if ok else answer,
                        "jpg": b"jpg" if ok else None,
                    }
                )
                if answer is None:
                    written.pop()
            schema = url_lists.URL_SCHEMA
            for name, kind in (("key", "str"), ("status", "str"), ("error_message", "str"), ("jpg", "binary")):
                schema = schema.append(pa.field(name, kind))
            # img2dataset writes in the order in which downloads end
            write_rows(folder / f"{shard:05d}.parquet", written[::-1], schema)
            start += size

    monkeypatch.setattr(step, "run_img2dataset", fake)
    monkeypatch.setattr(step, "ensure_environment", lambda folder: Path("python"))
    return answers


def failures(out):
    with (out / "failures.csv").open(newline="") as file:
        return [(row["url"], row["round"], row["reason"]) for row in csv.DictReader(file)]


SHOP = {
    "http://a/1": ["ok"],
    "http://a/2": ["HTTP Error 404: Not Found"],
    "http://a/3": ["HTTP Error 503: Unavailable", "timed out", "ok"],
    "http://B:80/4": ["timed out"],
    "http://b/5": ["Use of image disallowed by X-Robots-Tag directive"],
    "http://b/6": [None, "ok"],
    "http://b/7": ["ok"],
}


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        ("success", None, "arrived"),
        (None, None, "not recorded"),
        ("failed_to_resize", "Image decoding error", "not an image"),
        ("failed_to_resize", "OpenCV(4.14.0) error: (-215:Assertion failed) !buf.empty()", "not an image"),
        ("failed_to_download", "Use of image disallowed by X-Robots-Tag directive", "opted out"),
        ("failed_to_download", "HTTP Error 404: Not Found", "HTTP 404"),
        ("failed_to_download", "HTTP Error 504: Gateway timed out", "HTTP 504"),
        ("failed_to_download", "HTTP Error 302: would lead to an infinite loop.\nThe last 30x", "HTTP 302"),
        ("failed_to_download", "timed out", "timeout"),
        ("failed_to_download", "<urlopen error _ssl.c:989: The handshake operation timed out>", "timeout"),
        ("failed_to_download", "<urlopen error [Errno 110] Connection timed out>", "timeout"),
        ("failed_to_download", "<urlopen error [Errno -2] Name or service not known>", "unknown host"),
        ("failed_to_download", "<urlopen error [Errno -3] Temporary failure in name resolution>", "unknown host"),
        ("failed_to_download", "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "TLS"),
        ("failed_to_download", "<urlopen error [Errno 111] Connection refused>", "connection"),
        ("failed_to_download", "Remote end closed connection without response", "connection"),
        ("failed_to_download", "IncompleteRead(5000 bytes read, 85000 more expected)", "cut short"),
        ("failed_to_download", "URL can't contain control characters. '/x y' (found at least ' ')", "not a URL"),
        ("failed_to_download", "'ascii' codec can't encode character", "not a URL"),
        ("failed_to_download", "something new", "other"),
    ],
)
def test_messages_become_reasons(status, message, expected):
    assert reason(status, message) == expected


def test_a_row_that_img2dataset_lost_is_an_outcome(tmp_path, make_list):
    lists = list_files(make_list([f"http://a/{i}" for i in range(4)]))  # files of 3 and 1
    assert shard_sizes(lists, 2) == [2, 1, 1]
    schema = pa.schema({"key": "str", "status": "str", "error_message": "str"})
    for shard, places in enumerate(([1], [], [0])):
        rows = [{"key": f"{shard * 10 + place:06d}", "status": "success"} for place in places]
        write_rows(tmp_path / f"{shard:05d}.parquet", rows, schema)
    found = [(row["product_id"], row["reason"]) for row in outcomes(lists, tmp_path, 2)]
    assert found == [("0", "not recorded"), ("1", "arrived"), ("2", "not recorded"), ("3", "arrived")]


def test_each_round_asks_for_what_may_yet_arrive(tmp_path, make_list, web):
    web.update(SHOP)
    report = download(make_list(SHOP), tmp_path / "out", rounds=3, file_rows=2)
    assert web["asked"] == [
        list(SHOP),
        ["http://a/3", "http://B:80/4", "http://b/6"],
        ["http://a/3", "http://B:80/4"],
    ]
    assert failures(tmp_path / "out") == [
        ("http://a/2", "1", "HTTP 404"),
        ("http://b/5", "1", "opted out"),
        ("http://B:80/4", "3", "timeout"),
    ]
    assert (report["URLs"], report["arrived"]) == (7, 4)
    assert report["rounds"] == {
        "1": {"tried": 7, "arrived": 2},
        "2": {"tried": 3, "arrived": 1},
        "3": {"tried": 2, "arrived": 1},
    }
    assert report["splits"] == {"train": {"URLs": 7, "arrived": 4}}
    assert report["failed, by reason"] == {"HTTP 404": 1, "opted out": 1, "timeout": 1}
    assert [v for k, v in report.items() if "host" in k] == [{"b": "2 of 4", "a": "1 of 3"}]
    assert (tmp_path / "out/hosts.csv").read_text().splitlines() == [
        "host,outcome,urls",
        "a,HTTP 404,1",
        "a,arrived,2",
        "b,arrived,2",
        "b,opted out,1",
        "b,timeout,1",
    ]
    assert json.loads((tmp_path / "out/download.json").read_text()) == report
    # The folder is what the next step reads: nothing but images under *.parquet, nothing left of the work.
    assert {p.parent.name for p in (tmp_path / "out").rglob("*.parquet")} == {"round-1", "round-2", "round-3"}
    assert not (tmp_path / "out.unfinished").exists()


def test_rounds_end_when_nothing_is_left_and_can_be_added(tmp_path, make_list, web):
    web.update(SHOP)
    urls, out = make_list(SHOP), tmp_path / "out"
    assert download(urls, out, rounds=1, file_rows=2)["arrived"] == 2
    assert ("http://a/3", "1", "HTTP 503") in failures(out)
    download(urls, out, rounds=3, file_rows=2)
    assert [len(asked) for asked in web["asked"]] == [7, 3, 2]  # round 1 was not asked again
    done = download(urls, out, rounds=1, file_rows=2)  # what is there counts, however few rounds are asked for
    assert (done["arrived"], len(web["asked"])) == (4, 3)
    calm = {"http://a/1": ["ok"], "http://a/2": ["HTTP Error 410: Gone"]}
    web.update(calm)
    assert list(download(make_list(calm, "calm"), tmp_path / "calm-out", rounds=5)["rounds"]) == ["1"]


@pytest.mark.survives("SIGKILL while images are downloaded", "goes on to the same result")
@pytest.mark.parametrize("fatal", [1, 2, 3])
def test_a_killed_run_goes_on_to_the_same_result(tmp_path, make_list, web, monkeypatch, fatal):
    web.update(SHOP)
    urls = make_list(SHOP)
    expected = download(urls, tmp_path / "whole", rounds=3, file_rows=2)
    fake, calls = step.run_img2dataset, []

    def dies(python, settings, *rest):
        calls.append(settings)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        fake(python, settings, *rest)

    monkeypatch.setattr(step, "run_img2dataset", dies)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        download(urls, out, rounds=3, file_rows=2)
    assert not (out / "failures.csv").exists() and not (out / "download.json").exists()
    report = download(urls, out, rounds=3, file_rows=2)
    assert {**report, "folder": 0} == {**expected, "folder": 0}
    assert failures(out) == failures(tmp_path / "whole")
    assert len(calls) == 4  # three rounds, one of them twice


def test_another_list_or_size_is_refused(tmp_path, make_list, web):
    web.update(SHOP)
    download(make_list(SHOP), tmp_path / "out", rounds=1, file_rows=2)
    with pytest.raises(ValueError, match=r"begun with another file_rows \(2, now 5\); use the same"):
        download(tmp_path / "urls", tmp_path / "out", file_rows=5)
    with pytest.raises(ValueError, match="begun with another image_size"):
        download(tmp_path / "urls", tmp_path / "out", file_rows=2, image_size=512)
    with pytest.raises(ValueError, match="begun with another urls"):
        download(make_list(list(SHOP)[::-1], "reversed"), tmp_path / "out", file_rows=2)


def test_the_folder_that_urls_wrote_is_enough(tmp_path, make_list):
    folder = make_list(list(SHOP)).rename(tmp_path / "urls")
    assert url_lists.list_files(tmp_path) == url_lists.list_files(folder) == sorted(folder.glob("*.parquet"))


def test_the_place_in_the_metadata_is_carried_where_the_list_has_it(tmp_path, web):
    row = {"url": "http://a/1", "product_id": "p", "type": "SIMPLE", "split": "test", "category": None, "captions": []}
    web["http://a/1"] = ["ok"]
    table = pa.Table.from_pylist([row | {"metadata_row": 7}], url_lists.URL_SCHEMA)
    for name, kept in (("new", table), ("old", table.drop_columns("metadata_row"))):
        write_table(tmp_path / name / "0.parquet", kept)
        assert download(tmp_path / name, tmp_path / f"{name}-out", rounds=1)["arrived"] == 1
        assert ("metadata_row" in web["columns"]) == (name == "new")


def test_lists_that_are_none_are_refused(tmp_path, make_list, web):
    with pytest.raises(FileNotFoundError, match="nothing has no .*parquet; give what the step `urls` wrote"):
        download(tmp_path / "nothing", tmp_path / "out")
    write_table(tmp_path / "other/x.parquet", {"url": ["http://a/1"], "TEXT": ["a"]})
    with pytest.raises(ValueError, match=r"lacks the column\(s\) product_id, type, split, category, captions"):
        download(tmp_path / "other", tmp_path / "out")
    write_table(tmp_path / "other/x.parquet", url_lists.URL_SCHEMA.empty_table())
    with pytest.raises(ValueError, match="hold no URL"):
        download(tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.survives("a list of URLs with file:// or ftp://", "refused before anything is fetched")
@pytest.mark.parametrize("url", ["file:///etc/passwd", "FILE:///etc/passwd", "ftp://a/1", "//a/1", "", None])
def test_urls_of_no_web_server_are_refused(tmp_path, monkeypatch, url):
    with write_list(tmp_path / "lists/urls") as written:
        for address in ("http://a/1", url):
            written.add({name: None for name in url_lists.URL_SCHEMA.names} | {"url": address, "captions": []})
    monkeypatch.setattr(step, "ensure_environment", None)
    with pytest.raises(ValueError, match=f"has 1 URLs of no web server, such as {url!r}"):
        download(tmp_path / "lists", tmp_path / "out")


@pytest.mark.survives("ids and errors that a spreadsheet would take for formulas", "quoted in failures.csv, hosts.csv")
def test_no_cell_is_a_formula(tmp_path):
    with step.csv_file(tmp_path / "failures.csv", step.FAILURE_COLUMNS) as write:
        write({"url": "http://=1/", "product_id": "=1+1", "type": "-2", "round": -3, "reason": "@x", "error": "+x"})
    (row,) = csv.DictReader((tmp_path / "failures.csv").open(newline=""))
    assert [row[name] for name in ("url", "product_id", "type", "round", "reason", "error")] == [
        *("http://=1/", "'=1+1", "'-2", "-3", "'@x", "'+x")
    ]
    with step.csv_file(tmp_path / "hosts.csv", step.HOST_COLUMNS) as write:
        write({"host": "=cmd", "outcome": "arrived", "urls": 2})
    assert (tmp_path / "hosts.csv").read_text().splitlines()[1] == "'=cmd,arrived,2"


@pytest.mark.survives("images are downloaded into a mount point", "refused before anything is fetched")
def test_a_folder_on_another_disk_is_refused_at_once(tmp_path, monkeypatch):
    def across(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with write_list(tmp_path / "lists/urls") as written:
        written.add({name: None for name in url_lists.URL_SCHEMA.names} | {"url": "http://a/1", "captions": []})
    monkeypatch.setattr(step, "ensure_environment", lambda _: Path("python"))
    monkeypatch.setattr(step, "run_img2dataset", None)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: across() if old.name == "probe" else replace(old, new))
    with pytest.raises(
        ValueError, match="cannot be moved to .*/out .Invalid cross-device link., as into a mount point"
    ):
        download(tmp_path / "lists", tmp_path / "out")
