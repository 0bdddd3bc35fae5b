import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from probe.errors import ChecksumError, DatasetError, DownloadError
from probe.fetch import fetch

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Start a web server of one file. `breaks_after` cuts responses short, and `ranges` supports the Range header."""

    class Handler(BaseHTTPRequestHandler):
        breaks_after, ranges = None, True
        requests: ClassVar[list] = []

        def do_GET(self):
            self.requests.append(self.headers.get("Range"))
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(wanted[1]) if wanted and self.ranges else 0
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start:][: self.breaks_after])

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))  # checks for its end every 0.02 s
    thread.start()
    http.url = f"http://127.0.0.1:{http.server_port}/model.pt"
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_download_is_verified_and_stored(server, tmp_path):
    path = fetch(server.url, tmp_path / "new" / "model.pt", sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert not list(path.parent.glob("*.part"))


def test_an_existing_file_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "model.pt").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "model.pt", sha256=SHA256, offline=True)
    assert server.RequestHandlerClass.requests == []


def test_an_interrupted_download_is_resumed(server, tmp_path):
    server.RequestHandlerClass.breaks_after = 500_000
    with pytest.raises(DownloadError, match="run again to resume"):
        fetch(server.url, tmp_path / "model.pt", sha256=SHA256)
    server.RequestHandlerClass.breaks_after = None
    fetch(server.url, tmp_path / "model.pt", sha256=SHA256)
    assert (tmp_path / "model.pt").read_bytes() == CONTENT
    assert server.RequestHandlerClass.requests == [None, "bytes=500000-"]


def test_a_server_without_ranges_sends_the_whole_file_again(server, tmp_path):
    (tmp_path / "model.pt.part").write_bytes(CONTENT[:1000])
    server.RequestHandlerClass.ranges = False
    fetch(server.url, tmp_path / "model.pt", sha256=SHA256)
    assert (tmp_path / "model.pt").read_bytes() == CONTENT


def test_a_partial_file_that_is_too_long_is_discarded(server, tmp_path):
    (tmp_path / "model.pt.part").write_bytes(CONTENT + b"more")
    fetch(server.url, tmp_path / "model.pt", sha256=SHA256)
    assert (tmp_path / "model.pt").read_bytes() == CONTENT


def test_a_complete_partial_file_is_not_downloaded_again(server, tmp_path):
    """The download was killed between the last byte and the renaming."""
    (tmp_path / "model.pt.part").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "model.pt", sha256=SHA256)
    assert server.RequestHandlerClass.requests == []


def test_a_download_with_a_wrong_checksum_is_refused_and_removed(server, tmp_path):
    with pytest.raises(ChecksumError, match=SHA256):
        fetch(server.url, tmp_path / "model.pt", sha256="0" * 64)
    assert not list(tmp_path.glob("model.pt*")) or list(tmp_path.glob("*")) == [tmp_path / "model.pt.lock"]


def test_a_damaged_file_is_downloaded_again(server, tmp_path, caplog):
    (tmp_path / "model.pt").write_bytes(CONTENT[:-1])
    fetch(server.url, tmp_path / "model.pt", sha256=SHA256)
    assert (tmp_path / "model.pt").read_bytes() == CONTENT
    assert f"model.pt: SHA-256 mismatch (expected {SHA256}); downloading again" in caplog.text


def test_an_md5_is_checked_if_no_other_digest_is_published(server, tmp_path, caplog):
    md5 = hashlib.md5(CONTENT).hexdigest()
    (tmp_path / "a.zip").write_bytes(b"cut short")
    assert fetch(server.url, tmp_path / "a.zip", md5=md5).read_bytes() == CONTENT
    assert f"a.zip: MD5 mismatch (expected {md5}); downloading again" in caplog.text
    with pytest.raises(ChecksumError, match=f"MD5 mismatch .expected {'0' * 32}, got {md5}.; the download was deleted"):
        fetch(server.url, tmp_path / "b.zip", md5="0" * 32)
    assert not (tmp_path / "b.zip").exists()


def test_offline_names_url_and_target(tmp_path):
    with pytest.raises(DownloadError) as caught:
        fetch("https://example.org/model.pt", tmp_path / "model.pt", sha256=SHA256, offline=True)
    assert "https://example.org/model.pt" in str(caught.value)
    assert str(tmp_path / "model.pt") in str(caught.value)


@pytest.mark.parametrize("scheme", ["file", "FILE", "ftp", "data"])
def test_only_http_and_https_are_read(scheme, tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    with pytest.raises(DownloadError, match="is not a web address; give an address that starts with https://"):
        fetch(f"{scheme}://{tmp_path}/secret", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_a_server_that_does_not_answer_is_one_sentence(tmp_path):
    with pytest.raises(DownloadError, match="could not download"):
        fetch("http://127.0.0.1:9/model.pt", tmp_path / "model.pt", sha256=SHA256)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_the_error_for_a_full_disk_says_so(server, tmp_path):
    (tmp_path / "model.pt.part").symlink_to("/dev/full")
    with pytest.raises(
        DownloadError, match=r"no space left on the disk for .*model\.pt; free some space and run again"
    ):
        fetch(server.url, tmp_path / "model.pt", sha256=SHA256)


def test_a_file_without_a_published_checksum_is_downloaded_once(server, tmp_path):
    path = fetch(server.url, tmp_path / "shard.tar")
    assert path.read_bytes() == CONTENT
    assert fetch(server.url, tmp_path / "shard.tar", offline=True) == path
    assert len(server.RequestHandlerClass.requests) == 1


def test_a_file_that_a_check_refuses_is_removed(server, tmp_path):
    def check(path):
        assert path.read_bytes() == CONTENT
        raise DatasetError("no whole shard")

    with pytest.raises(DatasetError, match="no whole shard"):
        fetch(server.url, tmp_path / "shard.tar", check=check)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
