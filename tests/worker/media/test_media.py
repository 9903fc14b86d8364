"""Files that a request contains or names: base64, data URLs, http(s) URLs and their addresses, files on disk."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from certificates import make_certificate
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ConfigError, InvalidRequest
from llama_corral.presets.options.settings import Settings
from llama_corral.worker.media import remote
from llama_corral.worker.media.addresses import AllowedHosts, is_public, read_allowed
from llama_corral.worker.media.encoded import decode_base64, decode_data_url
from llama_corral.worker.media.inspection import check_file, picture_size
from llama_corral.worker.media.local import MediaDirectory
from llama_corral.worker.media.remote import MAX_BYTES, fetch
from llama_corral.worker.media.sources import MediaLoader, MediaSource, media_loader
from media_server import PICTURE, served

ANYWHERE = AllowedHosts(everything=True)
PUBLIC_ONLY = AllowedHosts()
ENCODED = base64.b64encode(PICTURE).decode()


# -- inside of the request -------------------------------------------------------------------------------------------


@given(st.binary(min_size=1))
def test_base64_is_decoded(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert decode_base64(text) == data
    assert decode_base64(text.rstrip("=")) == data, "without padding"
    assert decode_base64(base64.encodebytes(data).decode()) == data, "in lines"
    assert decode_data_url(f"data:image/png;base64,{text}") == data


@given(st.text())
def test_any_text_is_decoded_or_refused(text: str) -> None:
    for decode in (decode_base64, lambda text: decode_data_url("data:" + text)):
        with contextlib.suppress(InvalidRequest):
            assert decode(text)


@pytest.mark.parametrize("text", ["", "    ", "=", "malformed", "a b c!", "AA-_", "ä", "A", "https:"])
def test_invalid_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid base64 value"):
        decode_base64(text)


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{ENCODED}",
        f"DATA:Image/PNG;charset=utf-8;Base64,{ENCODED}",
        f"data:audio/wav;base64,{ENCODED}",
        f"data:video/mp4;base64,{ENCODED}",
        "data:image/png;base64," + ENCODED.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        f"data:image/svg+xml;base64,{ENCODED[:40]}\n{ENCODED[40:]}",
    ],
)
def test_data_urls(url: str) -> None:
    assert decode_data_url(url) == PICTURE


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("data:image/png;base64", "Invalid uri-encoded base64 value"),
        ("data:image/png;base64,AA==,AA==", "Invalid uri-encoded base64 value"),
        ("data:text/html;base64,aGVsbG8=", "Invalid uri format: data:text/html;base64"),
        ("data:,hello", "Invalid uri format: data:"),
        ("data:;base64,aGVsbG8=", "Invalid uri format: data:"),
        ("data:image/png,hello", "uri must be base64 encoded"),
        ("data:image/png;base64,", "Invalid base64 value"),
        ("data:image/png;base64,!!!!", "Invalid base64 value"),
    ],
)
def test_wrong_data_urls(url: str, error: str) -> None:
    with pytest.raises(InvalidRequest, match=error):
        decode_data_url(url)


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "0.1.2.3", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.8", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "100::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("64:ff9b:1::7f00:1", "2001:db8::1", "2001:0:7f00:1::", "", "localhost", "/run/docker.sock"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert not PUBLIC_ONLY.allows_address(address)


def test_allowed_hosts() -> None:
    allowed = read_allowed(
        ["10.0.0.0/8", "fd00::/8", "192.168.1.7", "Images.local", "store:9000"], "http://hub.lan:8080/mirror"
    )
    assert allowed.allows_address("10.1.2.3")
    assert allowed.allows_address("::ffff:10.1.2.3")
    assert allowed.allows_address("fd12::1")
    assert allowed.allows_address("192.168.1.7")
    assert not allowed.allows_address("192.168.1.8")
    assert not allowed.allows_address("fe80::1%lo")
    assert allowed.allows_host("images.LOCAL.", 80)
    assert allowed.allows_host("store", 9000)
    assert not allowed.allows_host("store", 80)
    assert allowed.allows_host("hub.lan", 8080)
    assert not allowed.allows_host("hub.lan", 22)
    assert not PUBLIC_ONLY.allows_host("localhost", 80)
    assert read_allowed(["all"]).allows_address("127.0.0.1")
    assert read_allowed([], "https://hub.lan").allows_host("hub.lan", 443)


@pytest.mark.parametrize("item", ["10.0.0.0/99", "a/b", "http://store", "a b"])
def test_wrong_allowed_hosts(item: str) -> None:
    with pytest.raises(ConfigError, match="--media-private-hosts"):
        read_allowed([item])


# -- over the network ------------------------------------------------------------------------------------------------


async def refusal(url: str, allowed: AllowedHosts = ANYWHERE, timeout_s: float = 10.0) -> str:
    with pytest.raises(InvalidRequest) as error:
        await fetch(url, allowed, timeout_s=timeout_s)
    return error.value.message


async def test_a_file_is_fetched() -> None:
    async with served() as server:
        assert await fetch(f"{server.url}/picture.png?size=1&token=a%2Fb", ANYWHERE) == PICTURE
        assert server.asked == ["/picture.png?size=1&token=a%2Fb"]
        assert "llama-corral" in server.headers[0]
        assert "gzip" not in server.headers[0]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing.png", "it answered with 404"),
        ("/empty", "its answer is empty"),
        ("/announced-large", "larger than 10 MiB"),
        ("/endless", "larger than 10 MiB"),
        ("/cut-off", "ClientPayloadError"),
        ("/compressed", "compressed"),
        ("/loop", "more than 5 redirects"),
        ("/nonsense", "BadStatusLine|ClientResponseError|ServerDisconnectedError"),
    ],
)
async def test_invalid_responses_of_a_server_are_refused(path: str, reason: str) -> None:
    async with served() as server:
        with pytest.raises(InvalidRequest, match=f"Failed to download image from 127.0.0.1: .*({reason})"):
            await fetch(server.url + path, ANYWHERE)
        assert len(server.asked) <= 6


@pytest.mark.parametrize("path", ["/slow-head", "/slow-body"])
async def test_a_slow_server_times_out(path: str) -> None:
    async with served() as server:
        assert "timed out after 0.2 s" in await refusal(server.url + path, timeout_s=0.2)


async def test_private_addresses_are_never_connected_to() -> None:
    async with served() as server:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "127.1", "0"):
            message = await refusal(f"http://{host}:{server.port}/picture.png", PUBLIC_ONLY)
            assert "Failed to download image" in message
        assert not server.connections
        assert not server.asked


async def test_the_address_is_checked_when_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name resolved to a public address before, and resolves to a private one now."""
    resolve = aiohttp.ThreadedResolver.resolve

    async def rebound(self: Any, host: str, *rest: Any, **more: Any) -> Any:
        return await resolve(self, "127.0.0.1" if host == "rebound.example" else host, *rest, **more)

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", rebound)
    assert aiohttp.DefaultResolver is aiohttp.ThreadedResolver

    async with served() as server:
        url = f"http://rebound.example:{server.port}/picture.png"
        assert "not a public address" in await refusal(url, PUBLIC_ONLY)
        assert not server.asked
        assert await fetch(url, read_allowed([f"rebound.example:{server.port}"])) == PICTURE
        assert await fetch(url, read_allowed(["127.0.0.0/8"])) == PICTURE


async def test_each_redirect_is_checked() -> None:
    async with served() as server, served() as inner:
        server.redirect_to = f"{inner.url}/picture.png"
        assert "not a public address" in await refusal(f"{server.url}/redirect", read_allowed([], server.url))
        assert not inner.asked
        assert await fetch(f"{server.url}/redirect", ANYWHERE) == PICTURE
        server.redirect_to = "picture.png"
        assert await fetch(f"{server.url}/redirect", read_allowed([], server.url)) == PICTURE
        for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1", ""):
            server.redirect_to = target
            assert "redirects to" in await refusal(f"{server.url}/redirect")


@pytest.mark.parametrize("url", ["http://", "https:///x", "http://[::1", "http://a:99999/x"])
async def test_invalid_urls_are_refused(url: str) -> None:
    await _refused(url)


async def _refused(url: str) -> None:
    assert "Failed to download image" in await refusal(url)


async def test_errors_do_not_contain_secrets_of_a_url() -> None:
    async with served() as server:
        url = f"http://user:secret1@127.0.0.1:{server.port}/missing?key=secret2"
        assert "secret" not in await refusal(url)


async def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.chain, certificate.key)

    remote._tls.cache_clear()
    async with served(context) as server:
        assert "certificate" in await refusal(f"{server.url}/picture.png")
        assert not server.asked

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))
    remote._tls.cache_clear()
    async with served(context) as server:
        assert await fetch(f"{server.url}/picture.png", ANYWHERE) == PICTURE
    remote._tls.cache_clear()


async def test_an_unreachable_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        await _refused(f"http://127.0.0.1:{unused.getsockname()[1]}/x")
    await _refused("http://no-such-name.invalid/x")


# -- on disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "media"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "picture.png").write_bytes(PICTURE)
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "out").symlink_to(tmp_path)
    (root / "out-file").symlink_to(tmp_path / "secret")
    (root / "within").symlink_to(root / "sub" / "picture.png")
    (root / "circle").symlink_to(root / "circle")
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize("name", ["sub/picture.png", "//sub//picture.png", "/sub/picture.png", "within"])
def test_files_below_the_media_path(directory: Path, name: str) -> None:
    assert MediaDirectory(str(directory), 1000).read("file://" + name) == PICTURE


@pytest.mark.parametrize(
    "name", ["../secret", "sub/../../secret", "", "out/secret", "out-file", "a\0b", "sub/a:b", "a."]
)
def test_files_outside_the_media_path_are_refused(directory: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="file path is not allowed"):
        MediaDirectory(str(directory), 1000).read("file://" + name)


@pytest.mark.parametrize("name", ["missing.png", "sub", "pipe", "circle", "sub/picture.png/x", "etc/passwd"])
def test_only_regular_files_are_read(directory: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="file does not exist or cannot be opened"):
        MediaDirectory(str(directory), 1000).read("file://" + name)


def test_a_large_file_and_a_wrong_directory_are_refused(directory: Path) -> None:
    with pytest.raises(InvalidRequest, match="larger than --max-body"):
        MediaDirectory(str(directory), 10).read("file://within")
    with pytest.raises(InvalidRequest, match="not allowed unless --media-path is specified"):
        MediaDirectory("", 10).read("file://within")
    with pytest.raises(ConfigError, match="--media-path: not a directory"):
        MediaDirectory(str(directory / "nowhere"), 10)


# -- all of a request ------------------------------------------------------------------------------------------------


async def test_a_request_gets_its_files_in_order(directory: Path) -> None:
    async with served() as server:
        loader = MediaLoader(MediaDirectory(str(directory), MAX_BYTES), ANYWHERE, MAX_BYTES)
        large = bytes(100_000)
        addresses = [
            f"{server.url}/picture.png",
            "data:image/png;base64,QUI=",
            base64.b64encode(large).decode(),
            "file://within",
            "QUJD",
        ]
        files = await loader.load([MediaSource("image", address) for address in addresses])
        assert files == [PICTURE, b"AB", large, PICTURE, b"ABC"]
        assert await loader.load([]) == []


async def test_thousands_of_small_files_are_read_without_a_task_for_each() -> None:
    loader = MediaLoader(MediaDirectory("", 1), ANYWHERE, MAX_BYTES)
    loading = asyncio.ensure_future(loader.load([MediaSource("image", f"data:image/png;base64,{ENCODED}")] * 2_000))
    most = 0
    while not loading.done():
        await asyncio.sleep(0)
        most = max(most, len(asyncio.all_tasks()))
    assert await loading == [PICTURE] * 2_000
    assert most < 20


async def test_one_bad_file_cancels_the_others() -> None:
    async with served() as server:
        loader = MediaLoader(MediaDirectory("", 1), ANYWHERE, MAX_BYTES)
        slow = [MediaSource("image", f"{server.url}/slow-head")] * 3
        with pytest.raises(InvalidRequest, match="must begin with http"):
            await loader.load([*slow, MediaSource("image", "ftp://example.org/x")])


async def test_cancelling_a_request_stops_its_fetches() -> None:
    async with served() as server:
        loader = MediaLoader(MediaDirectory("", 1), ANYWHERE, MAX_BYTES)
        loading = asyncio.ensure_future(loader.load([MediaSource("image", f"{server.url}/endless-wait")]))
        await server.arrived.wait()
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await server.left.wait()


async def test_the_total_size_of_all_files_is_limited() -> None:
    async with served() as server:
        loader = MediaLoader(MediaDirectory("", 1), ANYWHERE, len(PICTURE) * 2)
        sources = [MediaSource("image", f"{server.url}/picture.png")] * 3
        assert len(await loader.load(sources[:2])) == 2
        with pytest.raises(InvalidRequest, match="in total"):
            await loader.load(sources)


async def test_the_operators_hub_may_be_private() -> None:
    async with served() as server:
        picture = [MediaSource("image", f"{server.url}/picture.png")]
        assert await media_loader(Settings.of(), {"HF_ENDPOINT": server.url + "/"}).load(picture) == [PICTURE]
        with pytest.raises(InvalidRequest, match="not a public address"):
            await media_loader(Settings.of(), {}).load(picture)
        allowing = Settings.of(media_private_hosts=("127.0.0.1",))
        assert await media_loader(allowing, {}).load(picture) == [PICTURE]


# -- contents of the files -------------------------------------------------------------------------------------------


def headed(fmt: str, width: int, height: int) -> bytes:
    """Return the header of an image of this size and a few more bytes."""
    match fmt:
        case "png":
            return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + bytes(20)
        case "apple-png":
            chunk = b"\0\0\0\x04CgBI" + bytes(8)
            return b"\x89PNG\r\n\x1a\n" + chunk + headed("png", width, height)[8:]
        case "jpeg":
            comment = b"\xff\xfe" + struct.pack(">H", 10) + b"\xff\xc0junk12"
            frame = b"\xff\xff\xc2" + struct.pack(">HBHH", 17, 8, height, width)
            return b"\xff\xd8" + comment + b"\0" + frame + bytes(20)
        case "gif":
            return b"GIF89a" + struct.pack("<HH", width, height) + bytes(20)
        case "bmp":
            return b"BM" + bytes(12) + struct.pack("<Iii", 40, width, -height) + bytes(20)
        case "old-bmp":
            return b"BM" + bytes(12) + struct.pack("<IHH", 12, width, height) + bytes(20)
        case "psd":
            return b"8BPS\0\1" + bytes(8) + struct.pack(">II", height, width) + bytes(20)
        case "pic":
            return b"\x53\x80\xf6\x34" + bytes(84) + b"PICT" + struct.pack(">HH", width, height) + bytes(20)
        case "hdr":
            return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n" + f"-Y {height} +X {width}\n".encode()
        case "webp":
            sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
            return b"RIFF" + bytes(4) + b"WEBPVP8X" + bytes(8) + sides + bytes(20)
        case "tga":
            return struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, width, height, 24, 0)
    raise AssertionError(fmt)


FORMATS = ["png", "apple-png", "jpeg", "gif", "bmp", "old-bmp", "psd", "pic", "hdr", "webp", "tga"]


@pytest.mark.parametrize("fmt", FORMATS)
def test_images_with_too_many_pixels_are_refused(fmt: str) -> None:
    assert picture_size(headed(fmt, 300, 200)) == (300, 200)
    check_file(headed(fmt, 300, 200))
    with pytest.raises(InvalidRequest, match="20000 x 30000 pixels is too large"):
        check_file(headed(fmt, 20000, 30000))


@pytest.mark.parametrize(
    "text",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://169.254.169.254/x.ts\n",
        b"\xef\xbb\xbf#EXTM3U\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile http://10.0.0.1/x\n",
        b"\n\n  <?xml version='1.0'?><MPD profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'>",
        b"v=0\r\no=- 0 0 IN IP4 10.0.0.1\r\nc=IN IP4 10.0.0.1\r\n",
        b"<!doctype html><title>not found</title>",
    ],
)
def test_text_files_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Failed to load image or audio file"):
        check_file(text)


@given(st.sampled_from(FORMATS), st.integers(0, 60), st.binary(max_size=60))
def test_picture_size_accepts_any_bytes(fmt: str, kept: int, more: bytes) -> None:
    for data in (headed(fmt, 7, 7)[:kept] + more, more):
        size = picture_size(data)
        assert size is None or len(size) == 2
