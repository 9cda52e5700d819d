"""Downloads from a real web server on the loopback: resumed, checked, all or nothing."""

from __future__ import annotations

import errno
import hashlib
import http.server
import socket
import threading
from contextlib import suppress
from email.message import Message

import pytest
from copies_of_cifar import serve

from qlab.data import download as module
from qlab.data.download import Remote, download
from qlab.data.store import NoRoom

CONTENT = bytes(range(256)) * 4000  # 1 MB
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def remote_of(host, size=len(CONTENT), md5=MD5, path="/data.tgz") -> Remote:
    return Remote(host.url + path, "data.tgz", size, md5)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole(tmp_path):
    with serve({"/data.tgz": CONTENT}) as host:
        path = download(remote_of(host), tmp_path)
    assert path == tmp_path / "data.tgz" and path.read_bytes() == CONTENT
    assert names(tmp_path) == ["data.tgz"]


def test_a_half_download_is_gone_on_with(tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(CONTENT[:300_000])
    with serve({"/data.tgz": CONTENT}) as host:
        assert download(remote_of(host), tmp_path).read_bytes() == CONTENT
        assert host.asked == [("/data.tgz", "bytes=300000-")]


def test_a_download_that_lacked_only_its_check_is_not_asked_for_again(tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(CONTENT)
    with serve({"/data.tgz": CONTENT}) as host:
        assert download(remote_of(host), tmp_path).read_bytes() == CONTENT
        assert host.asked == []


@pytest.mark.parametrize("says_length", [True, False])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path, capsys, says_length):
    with serve({"/data.tgz": CONTENT}, breaks_after=[100_000, 200_000], says_length=says_length) as host:
        assert download(remote_of(host), tmp_path).read_bytes() == CONTENT
        assert [asked for _, asked in host.asked] == ["bytes=0-", "bytes=100000-", "bytes=300000-"]
    said = capsys.readouterr().out
    assert "the connection broke after 100,000 of 1,024,000 bytes: going on from there" in said
    assert "the connection broke after 300,000 of 1,024,000 bytes" in said


def test_a_connection_that_breaks_for_good_keeps_what_came(tmp_path):
    with serve({"/data.tgz": CONTENT}, breaks_after=[1000] * module.ATTEMPTS) as host:
        with pytest.raises(
            ConnectionError, match="broke off after 5,000 of 1,024,000 bytes. They are kept: call again"
        ):
            download(remote_of(host), tmp_path)
        assert names(tmp_path) == ["data.tgz.part"]
        assert download(remote_of(host), tmp_path).read_bytes() == CONTENT
        assert host.asked[-1] == ("/data.tgz", "bytes=5000-")


def test_a_connection_that_gives_nothing_is_no_reason_to_try_for_ever(tmp_path):
    with serve({"/data.tgz": CONTENT}, breaks_after=[0] * 50) as host:
        with pytest.raises(ConnectionError, match="broke off after 0 of|cannot be reached"):
            download(remote_of(host), tmp_path)
        assert len(host.asked) <= module.ATTEMPTS


def test_a_host_that_cannot_resume_sends_everything_anew(tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(b"x" * 300_000)
    with serve({"/data.tgz": CONTENT}, ranges=False) as host:
        assert download(remote_of(host), tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_throws_the_download_away(tmp_path):
    with serve({"/data.tgz": b"y" * len(CONTENT)}) as host:
        with pytest.raises(
            ValueError, match=f"the md5 [0-9a-f]{{32}}, expected 1,024,000 and {MD5}: it was thrown away"
        ):
            download(remote_of(host), tmp_path)
    assert names(tmp_path) == []


def test_a_half_download_of_another_file_does_not_get_past_the_checksum(tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(b"x" * 300_000)
    with serve({"/data.tgz": CONTENT}) as host:
        with pytest.raises(ValueError, match="thrown away"):
            download(remote_of(host), tmp_path)
        assert download(remote_of(host), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("half", [0, 100])
def test_a_file_of_another_size_is_refused_before_it_is_fetched(tmp_path, half):
    (tmp_path / "data.tgz.part").write_bytes(CONTENT[:half])
    with serve({"/data.tgz": CONTENT}) as host:
        with pytest.raises(ValueError, match="has 1,024,000 bytes, expected 2,000,000: it is another file now"):
            download(remote_of(host, size=2_000_000), tmp_path)
    assert (tmp_path / "data.tgz.part").read_bytes() == CONTENT[:half]


def test_a_host_that_does_not_say_where_it_ends_is_left_after_the_bytes_expected(tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(CONTENT[:100])
    with serve({"/data.tgz": CONTENT}, says_length=False, ranges=False) as host:
        with pytest.raises(ValueError, match="data.tgz sends more than the 300,000 bytes expected: it was thrown away"):
            download(remote_of(host, size=300_000, md5=None), tmp_path)
    assert names(tmp_path) == []


def test_a_download_without_end_has_an_end(tmp_path):
    """The host sends for ever; what it sent is gone, and no more than the file was on the disk."""
    largest = 0

    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            nonlocal largest
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):
                while True:
                    self.wfile.write(bytes(100_000))
                    largest = max(largest, module.came(tmp_path / "data.tgz.part"))

        def log_message(self, *args):
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/data.tgz"
            with pytest.raises(ValueError, match=f"{url} sends more than the 2,000,000 bytes expected"):
                download(Remote(url, "data.tgz", 2_000_000), tmp_path)
        finally:
            server.shutdown()
            thread.join()
    assert names(tmp_path) == [] and largest <= 2_000_000


def test_a_size_that_the_host_does_not_say_is_checked_in_the_end(tmp_path):
    with serve({"/data.tgz": CONTENT}, says_length=False, ranges=False) as host:
        with pytest.raises(ConnectionError, match="broke off after 1,024,000 of 1,100,000 bytes"):
            download(remote_of(host, size=1_100_000, md5=None), tmp_path)
    assert not (tmp_path / "data.tgz").exists()


@pytest.mark.parametrize("length", ["many", "-5", "9" * 5000, ""])
def test_a_length_that_is_no_number_is_as_good_as_none(length):
    headers = Message()
    headers["Content-Length"] = length
    headers["Content-Range"] = f"bytes 0-9/{length}"
    assert module.extent(headers, Remote("http://x", "x", 10)) == (0, 10)


def test_a_part_from_the_wrong_place_is_refused(tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(CONTENT[:100])
    with serve({"/data.tgz": CONTENT}, wrong_start=True) as host:
        with pytest.raises(ValueError, match="another file now"):
            download(remote_of(host), tmp_path)


def test_a_half_download_longer_than_what_the_host_has_is_thrown_away(tmp_path):
    (tmp_path / "data.tgz.part").write_bytes(CONTENT)
    with serve({"/data.tgz": CONTENT[:1000]}) as host:
        with pytest.raises(ValueError, match="another file now"):
            download(remote_of(host, size=2_000_000), tmp_path)
    assert names(tmp_path) == []


def test_a_file_that_is_not_there_is_named(tmp_path):
    with serve({}) as host:
        with pytest.raises(ConnectionError, match="data.tgz cannot be reached .HTTP Error 404"):
            download(remote_of(host), tmp_path)
        assert len(host.asked) == 1
    assert names(tmp_path) == []


def test_a_host_that_is_not_there_is_named(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/data.tgz"
    with pytest.raises(ConnectionError, match=f"{url} cannot be reached"):
        download(Remote(url, "data.tgz", 10), tmp_path)
    assert names(tmp_path) == []


def test_a_host_that_falls_silent_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    with socket.socket() as silent:  # accepts, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/data.tgz"
        with pytest.raises(ConnectionError, match="cannot be reached .*timed out"):
            download(Remote(url, "data.tgz", 10), tmp_path)


def test_no_download_is_begun_that_the_disk_has_no_room_for(tmp_path):
    with serve({"/data.tgz": CONTENT}) as host:
        with pytest.raises(
            NoRoom, match="the disk is full: .* needs 1000000000 MB more and has .* set QLAB_DATA"
        ) as caught:
            download(remote_of(host, size=10**15), tmp_path)
        assert host.asked == [] and caught.value.errno == errno.ENOSPC


def test_a_disk_that_becomes_full_gets_back_what_the_download_took(tmp_path):
    resource = pytest.importorskip("resource", reason="a limit on the size of files stands in for the full disk")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serve({"/data.tgz": CONTENT}) as host:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
        try:
            with pytest.raises(NoRoom, match="cannot write .*data.tgz.part .*Make room, or set QLAB_DATA"):
                download(remote_of(host), tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [path.stat().st_size for path in tmp_path.iterdir()] in ([], [0])
        assert download(remote_of(host), tmp_path).read_bytes() == CONTENT
