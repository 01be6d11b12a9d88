"""Lists of addresses are downloaded within limits, and never make the trainer ask its own network."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.dataset.making import make_zip, png
from tests.trainer.dataset.serving import Answer, body, drip, endless, redirect, serving, unsaid
from tests.trainer.dataset.test_sources import captions, taken
from trainer.dataset.archives import RefusedError
from trainer.dataset.images.decode_workers import Decoded
from trainer.dataset.limits import Limits
from trainer.dataset.sources.download import download, is_public
from trainer.dataset.sources.source_readers import Sources
from trainer.dataset.sources.url_list import parse_list
from trainer.protocol.report import RefusalKind

OPEN = Limits(allow_private_addresses=True)


def refused(url: str, limits: Limits) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        download(url, limits)
    return caught.value


def test_a_list_holds_addresses_captions_and_comments() -> None:
    text = "# mine\nhttps://a.example/1.png\ta red cat\n\nHTTP://b.example/2.png a dog\nhttps://c.example/3.png?x=1\n"
    found = parse_list(text.encode("utf-16"))
    assert [(one.line, one.url, one.caption) for one in found] == [
        (2, "https://a.example/1.png", "a red cat"),
        (4, "HTTP://b.example/2.png", "a dog"),
        (5, "https://c.example/3.png?x=1", ""),
    ]


@pytest.mark.parametrize(
    "text", ["", "# only a comment", "a cat\nhttps://a.example/1.png", "ftp://a.example/1.png", "file:///etc/passwd"]
)
def test_other_texts_are_no_lists(text: str) -> None:
    assert parse_list(text.encode()) == ()


def test_a_list_becomes_pictures_and_each_failure_is_one_refusal(tmp_path: Path) -> None:
    answers = {"/1.png": body(png(1)), "/on": redirect("/2.png"), "/2.png": body(png(2)), "/page": body(b"<html>")}
    with serving(answers) as (address, asked):
        lines = [f"{address}/1.png\ta red cat", f"{address}/on a dog", f"{address}/gone.png", f"{address}/page"]
        (tmp_path / "pictures.txt").write_text("\n".join(lines))
        found, problems = taken(tmp_path, tmp_path / "pictures.txt", limits=OPEN)
    assert captions(found) == {
        "pictures.txt!1 1.png": "a red cat",
        "pictures.txt!2 on": "a dog",
        "pictures.txt!4 page": "",
    }
    assert [isinstance(one.outcome, Decoded) for one in found] == [True, True, False]
    assert [(one.source, one.reason) for one in problems] == [
        ("pictures.txt!3 gone.png", "it could not be downloaded (the server answers 404 Not Found)")
    ]
    assert sorted(asked) == ["/1.png", "/2.png", "/gone.png", "/on", "/page"]


def test_many_downloads_run_at_once_and_each_once(tmp_path: Path) -> None:
    data = png(1)

    def slow(request: Any) -> None:
        time.sleep(0.2)
        body(data)(request)

    answers: dict[str, Answer] = {f"/{i}.png": slow for i in range(12)}
    with serving(answers) as (address, asked):
        (tmp_path / "list.urls").write_text("\n".join(f"{address}/{i}.png" for i in range(12)))
        with Sources([tmp_path / "list.urls"], OPEN) as opened:
            assert asked == []
            started = time.monotonic()
            assert all(entry.read() == data for entry in opened.entries)
            assert time.monotonic() - started < 12 * 0.2 / 2
    assert len(asked) == len(set(asked)) == 12


def test_the_same_list_has_the_same_digest_and_asks_nobody(tmp_path: Path) -> None:
    digests = []
    with serving({}) as (address, asked):
        for name in ("1.png", "1.png", "2.png"):
            (tmp_path / "list.txt").write_text(f"{address}/{name}\n")
            with Sources([tmp_path / "list.txt"], OPEN) as opened:
                digests.append(opened.digest())
        assert asked == []
    assert digests[0] == digests[1] != digests[2]


def test_downloads_can_be_switched_off_and_are_counted(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://a.example/1.png\nhttps://a.example/2.png\n")
    for limits, says in (
        (Limits(allow_downloads=False), "switched off"),
        (Limits(max_downloads=1), "at most 1 are downloaded"),
    ):
        with Sources([tmp_path / "list.txt"], limits) as opened:
            assert opened.entries == []
            assert says in opened.refused[0].reason


def test_the_budget_of_a_list_ends_its_downloads(tmp_path: Path) -> None:
    with serving({f"/{i}.png": body(png(i)) for i in range(20)}) as (address, asked):
        (tmp_path / "list.txt").write_text("\n".join(f"{address}/{i}.png" for i in range(20)))
        limits = Limits(allow_private_addresses=True, max_downloaded_bytes=2 * len(png(0)))
        found, problems = taken(tmp_path, tmp_path / "list.txt", limits=limits)
    assert len(found) + len(problems) == 20
    assert {one.kind for one in problems} == {RefusalKind.TOO_LARGE}
    assert len(asked) < 20


def test_a_list_inside_an_archive_or_beside_a_picture_is_not_followed(tmp_path: Path) -> None:
    with serving({"/1.png": body(png(1))}) as (address, asked):
        line = f"{address}/1.png".encode()
        path = make_zip(tmp_path / "a.zip", {"list.urls": line, "links.txt": line, "2.png": png(2)})
        (tmp_path / "3.png").write_bytes(png(3))
        (tmp_path / "3.txt").write_bytes(line)
        found, problems = taken(tmp_path, path, tmp_path / "3.png", limits=OPEN)
    assert asked == []
    assert captions(found) == {"a.zip!2.png": "", "3.png": line.decode()}
    assert {one.source for one in problems} == {"a.zip!list.urls", "a.zip!links.txt"}


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost:8080/",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://192.168.1.1/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://[fe80::1]/",
        "http://[64:ff9b::7f00:1]/",
    ],
)
def test_this_network_is_never_asked(url: str) -> None:
    assert refused(url, Limits()).kind is RefusalKind.UNSAFE_PATH


@pytest.mark.parametrize("address", ["100.64.0.1", "224.0.0.1", "240.0.0.1", "fc00::1", "2002:7f00:1::", "ff02::1"])
def test_shared_reserved_and_disguised_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_open_internet_are_public(address: str) -> None:
    assert is_public(address)


def test_a_name_that_resolves_to_this_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))
    private = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [public, private])
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it was asked"))
    assert refused("http://rebind.example/", Limits()).kind is RefusalKind.UNSAFE_PATH


def test_a_redirect_into_this_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"/on": redirect("http://127.0.0.1:9/secret")}) as (address, _):
        port = int(address.rpartition(":")[2])
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *a, **k: real("127.0.0.1" if host == "public.example" else host, *a, **k),
        )
        # The first address is taken for a public one, so that only the second is in question.
        verdicts = iter([True, False])
        monkeypatch.setattr("trainer.dataset.sources.download.is_public", lambda _: next(verdicts))
        refusal = refused(f"http://public.example:{port}/on", Limits())
    assert refusal.kind is RefusalKind.UNSAFE_PATH
    assert refusal.reason == "its address lies in a private network, which is not asked"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://a.example/1.png", "gopher://127.0.0.1:25/x"])
def test_a_redirect_to_another_protocol_is_refused(target: str) -> None:
    with serving({"/on": redirect(target)}) as (address, _):
        assert refused(f"{address}/on", OPEN).kind is RefusalKind.UNSAFE_PATH


def test_redirects_are_bounded() -> None:
    with serving({"/on": redirect("/on")}) as (address, asked):
        assert "sent on more than 5 times" in refused(f"{address}/on", OPEN).reason
    assert len(asked) == 6


def test_large_bodies_are_refused_promised_or_not() -> None:
    data, limits = bytes(100_001), Limits(allow_private_addresses=True, max_download_bytes=100_000)
    with serving({"/said": body(data), "/unsaid": unsaid(data), "/endless": endless}) as (address, _):
        for path in ("/said", "/unsaid", "/endless"):
            assert refused(address + path, limits).kind is RefusalKind.TOO_LARGE
        assert download(f"{address}/said", Limits(allow_private_addresses=True, max_download_bytes=100_001))


def test_a_server_that_drips_is_cut_off_in_time() -> None:
    limits = Limits(allow_private_addresses=True, download_timeout_s=0.5)
    with serving({"/drip": drip(bytes(100), 0.1)}) as (address, _):
        started = time.monotonic()
        assert refused(f"{address}/drip", limits).reason == "it could not be downloaded (it took more than 0.5 s)"
        assert time.monotonic() - started < 2


def test_a_body_that_breaks_off_is_refused() -> None:
    with serving({"/short": body(b"abc", Content_Length="10")}) as (address, _):
        assert "could not be downloaded" in refused(f"{address}/short", OPEN).reason


def test_hosts_that_do_not_answer_are_named_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Connection refused" in refused("http://127.0.0.1:1/", OPEN).reason
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror(-2, "no")))
    assert "its host is not known" in refused("http://nowhere.invalid/", OPEN).reason


def test_what_speaks_no_tls_is_refused_by_https() -> None:
    with serving({"/1.png": body(b"x")}) as (address, asked):
        reason = refused(f"{address.replace('http', 'https', 1)}/1.png", OPEN).reason
    assert reason.startswith("it could not be downloaded (")
    assert asked == []


def test_addresses_with_spaces_and_other_letters_are_asked_for_escaped() -> None:
    with serving({"/%E7%8C%AB%20a.png": body(b"cat")}) as (address, _):
        assert download(f"{address}/猫%20a.png", OPEN) == b"cat"
    assert refused("http://user:secret@a.example/", OPEN).kind is RefusalKind.UNSAFE_PATH
