"""Samples of tars that lie elsewhere are those of the same tars here."""

import pickle
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metamorph.config import DataConfig
from metamorph.data.opening import open_source
from metamorph.data.remote.shards import default_folder
from metamorph.data.uses import check_data
from metamorph.errors import Halted, UserError
from metamorph.init.found_data import find_data


def config(path: object, copies: Path | None = None, **keys) -> DataConfig:
    keys = {"family": "captions", "cache": str(copies or ""), **keys}
    return DataConfig("webdataset", path=str(path), **keys)


def captions(source, count: int) -> list[str]:
    return [source.sample(index).turns[0].text.split()[-1] for index in range(count)]


def test_samples_are_those_of_the_same_tars_here(elsewhere, copies, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(elsewhere.cat(f"/pairs/{number}.tar"))
    here = open_source(config(tmp_path, shuffle=False), 0)
    there = open_source(config("memory://pairs", copies, shuffle=False), 0)
    assert captions(there, 24) == captions(here, 24)
    assert there.sample(5).images[0].open().size == (20, 10)
    assert there.sample(5).where == "memory:///pairs/1.tar sample 1"
    assert captions(pickle.loads(pickle.dumps(there)), 12) == captions(there, 12)


def test_one_tar_is_gone_through_before_the_next(elsewhere, copies):
    source = open_source(config("memory://pairs", copies), 3)
    seen = captions(source, 24)
    assert sorted(seen[:12]) == sorted(seen[12:]) and seen[:12] != seen[12:]
    for epoch in (seen[:12], seen[12:]):
        tars = [caption.partition("-")[0] for caption in epoch]
        assert tars == sorted(tars, key=tars.index)
    assert captions(open_source(config("memory://pairs", copies), 3), 24) == seen


def test_members_are_walked_once_even_where_the_copies_are_gone(elsewhere, copies, monkeypatch):
    limit = elsewhere.size("/pairs/0.tar") / 10**9
    settings = config("memory://pairs", copies, cache_gigabytes=limit)
    expected = captions(open_source(settings, 0), 12)
    assert len(list(copies.glob("*.tar"))) == 1
    walked = "metamorph.data.remote.shards.members"
    with monkeypatch.context() as patch:
        patch.setattr(walked, None)
        again = open_source(settings, 0)
    assert captions(again, 12) == expected
    for index in copies.glob("*.members-1.json"):
        index.write_text("[[1, 2")
    assert captions(open_source(settings, 0), 12) == expected


def test_a_store_that_does_not_answer_ends_the_run_and_is_no_bad_sample(
    elsewhere, copies, monkeypatch, impatient
):
    source = open_source(config("memory://pairs", copies), 0)
    for copy in copies.glob("*.tar"):
        copy.unlink()

    def down(address):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("metamorph.data.remote.cache.open_filesystem", down)
    with pytest.raises(Halted, match="no route to host"):
        source.sample(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DataConfig("jsonl", path="s3://bucket/a.jsonl"), "which only the path of source webdata"),
        (DataConfig("parquet", path="s3://bucket/a.parquet"), "data.path: s3://bucket/a.parquet"),
        (DataConfig("jsonl", path="a.jsonl", image_root="https://x/y"), "data.image_root: https"),
        (DataConfig("hf", path="hf://datasets/a/b"), "data.path: hf://datasets/a/b is an address"),
    ],
)
def test_addresses_elsewhere_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        open_source(settings, 0)


def test_keys_that_only_files_or_only_addresses_use(tmp_path):
    check_data(config("s3://bucket", tmp_path))
    with pytest.raises(UserError, match="data.cache: source webdataset does not use it"):
        check_data(config("pairs", tmp_path))
    with pytest.raises(UserError, match="data.follow_links: source webdataset at an address does"):
        check_data(replace(config("s3://bucket", tmp_path), follow_links=True))
    path = tmp_path / "both.yaml"
    path.write_text("a: {source: webdataset, path: 's3://bucket/*.tar'}\n")
    check_data(DataConfig("mixture", path=str(path), cache_gigabytes=5))
    with pytest.raises(UserError, match="data.follow_links: no part of .*both.yaml uses it"):
        check_data(DataConfig("mixture", path=str(path), follow_links=True))
    validation = DataConfig("toy_scenes", validation=str(path), cache_gigabytes=5)
    check_data(validation)
    with pytest.raises(UserError, match="data.cache_gigabytes: source toy_scenes does not use"):
        check_data(replace(validation, validation=0.1))


def test_init_fetches_nothing():
    with pytest.raises(UserError, match="is elsewhere, and nothing is fetched"):
        find_data("s3://bucket/a.tar", True)


def test_copies_lie_in_the_users_cache_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "metamorph" / "tars"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


class Elsewhere(BaseHTTPRequestHandler):
    """Sends whoever asks to a file of this machine."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "file:///etc/hostname")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def serve():
    servers = []

    def start(handler) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_over_http(elsewhere, copies, tmp_path, serve):
    pytest.importorskip("aiohttp", reason="the extra http is not installed")
    (tmp_path / "www").mkdir()
    for number in range(3):
        path = tmp_path / "www" / f"{number}.tar"
        path.write_bytes(elsewhere.cat(f"/pairs/{number}.tar"))
    address = serve(partial(Quiet, directory=tmp_path / "www"))
    source = open_source(config(f"{address}/{{0..2}}.tar", copies, shuffle=False), 0)
    assert captions(source, 12) == [f"{tar}-{n}." for tar in range(3) for n in range(4)]
    with pytest.raises(UserError, match="there is no such file"):
        open_source(config(f"{address}/9.tar", copies), 0)
    with pytest.raises(UserError, match="a web server lists no files"):
        open_source(config(f"{address}/*.tar", copies), 0)


def test_a_server_cannot_lead_to_a_file_of_this_machine(copies, serve, impatient):
    pytest.importorskip("aiohttp", reason="the extra http is not installed")
    address = serve(Elsewhere)
    with pytest.raises((UserError, Halted)):
        open_source(config(f"{address}/0.tar", copies), 0)
    assert not list(copies.glob("*.tar")) if copies.exists() else True
