"""Model files: names, the cache, and downloads that survive all failures of the network."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import ModelFilesError
from llama_corral.common.hub import download, hub_cache, resolve
from llama_corral.common.hub.gguf_names import (
    RepoModelFiles,
    canonical_name,
    choose_files,
    listed_tag,
    shard,
    shard_names,
)
from llama_corral.common.hub.resolve import list_cached, resolve_files
from llama_corral.presets.options.settings import Settings
from local_hub import LocalHub, cache_repo

TOKEN = "hf_" + "a" * 34
REPO = "user/model-GGUF"
BIG = bytes(range(256)) * (3 << 12)  # 3 MiB: several chunks of a transfer
FILES = {
    "README.md": b"read me",
    "model-Q4_K_M.gguf": b"GGUF four",
    "model-Q8_0.gguf": b"GGUF eight",
    "mmproj-model-F16.gguf": b"GGUF projector",
    "big/model-BF16-00001-of-00002.gguf": BIG,
    "big/model-BF16-00002-of-00002.gguf": b"GGUF tail",
}


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    with LocalHub({REPO: dict(FILES), "user/presets": {"preset.ini": b"[one]\nmodel = a.gguf\n"}}) as running:
        yield running


@pytest.fixture
def environ(tmp_path: Path, local_hub: LocalHub) -> dict[str, str]:
    return {"LLAMA_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": local_hub.url + "/"}


# Names


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model-Q4_K_M.gguf", "Q4_K_M"),
        ("model.q8_0.gguf", "Q8_0"),
        ("dir/model-UD-Q4_K_XL.gguf", "Q4_K_XL"),
        ("model-bf16-00001-of-00003.gguf", "BF16"),
        ("model-bf16-00002-of-00003.gguf", None),
        ("model.gguf", None),
        ("mmproj-model-F16.gguf", None),
        ("mtp-model-F16.gguf", None),
        ("x/dspark-model-F16.gguf", None),
        ("model-Q8_0.safetensors", None),
        ("stories260K-f32.gguf", "F32"),
    ],
)
def test_tag_under_which_a_file_is_listed(path: str, expected: str | None) -> None:
    assert listed_tag(path) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("repo:q8_0", "repo:Q8_0"),
        ("repo:UD-Q4_K_XL", "repo:Q4_K_XL"),
        ("a/b.c", "a/b.c"),
        ("a:b:f16", "a:b:F16"),
    ],
)
def test_canonical_names(name: str, expected: str) -> None:
    assert canonical_name(name) == expected


def test_shards() -> None:
    assert shard_names("a/b-00002-of-00003.gguf") == tuple(f"a/b-0000{i}-of-00003.gguf" for i in (1, 2, 3))
    assert shard_names("a/b.gguf") == ("a/b.gguf",)


@pytest.mark.parametrize(
    ("paths", "tag", "expected"),
    [
        (["a-Q2_K.gguf", "a-Q8_0.gguf", "a-Q4_K_M.gguf"], "", "a-Q4_K_M.gguf"),
        (["a-Q2_K.gguf", "a-Q8_0.gguf"], "", "a-Q8_0.gguf"),
        (["mmproj-Q8_0.gguf", "a-Q2_K.gguf"], "", "a-Q2_K.gguf"),
        (["a-Q2_K.gguf"], "q2_k", "a-Q2_K.gguf"),
        (["a-Q2_K.gguf"], "Q2", None),
        (["a-Q2_K.gguf"], "Q8_0", None),
        (["Q8_0/a-00002-of-00002.gguf", "Q8_0/a-00001-of-00002.gguf"], "Q8_0", None),
        (["a-F16-00002-of-00002.gguf", "a-F16-00001-of-00002.gguf"], "F16", "a-F16-00001-of-00002.gguf"),
        (["imatrix-Q8_0.gguf", "a-UD-Q8_0.gguf"], "UD-Q8_0", "a-UD-Q8_0.gguf"),
        (["a-x.gguf"], ".", None),
    ],
)
def test_choice_by_tag(paths: list[str], tag: str, expected: str | None) -> None:
    assert (choose_files(paths, tag).model or (None,))[0] == expected


@pytest.mark.parametrize(
    ("siblings", "expected"),
    [
        (["mmproj-F32.gguf", "mmproj-Q8_0.gguf"], "mmproj-Q8_0.gguf"),
        (["mmproj-Q4_0.gguf", "sub/mmproj-F32.gguf"], "sub/mmproj-F32.gguf"),
        (["other/mmproj-Q4_0.gguf"], None),
        (["mmproj-F16.txt"], None),
    ],
)
def test_projector_in_the_models_folder_or_above(siblings: list[str], expected: str | None) -> None:
    assert choose_files(["sub/model-Q4_0.gguf", *siblings], "").mmproj == expected


def test_draft_heads_by_precedence_and_exact_tag() -> None:
    paths = ["model-Q8_0.gguf", "mtp-model-Q4_0.gguf", "mtp-model-Q8_0.gguf", "eagle3-model-Q8_0.gguf"]
    choice = choose_files(paths, "Q8_0", drafts=("eagle3", "mtp"))
    assert (choice.draft, choice.draft_kind) == ("mtp-model-Q8_0.gguf", "mtp")
    assert choose_files(paths, "Q8_0").draft is None


@given(st.text(alphabet="aQ0_-.4/of", max_size=40))
def test_every_name_is_readable(name: str) -> None:
    part = shard(name + ".gguf")
    assert name.startswith(part.prefix)
    assert name + ".gguf" in shard_names(name + ".gguf") or part.index > part.count or part.index == 0


# The cache


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LLAMA_CACHE": "/l", "HF_HUB_CACHE": "/h"}, "/l"),
        ({"LLAMA_CACHE": "", "HF_HUB_CACHE": "/h", "HUGGINGFACE_HUB_CACHE": "/g"}, "/h"),
        ({"HUGGINGFACE_HUB_CACHE": "/g", "HF_HOME": "/f"}, "/g"),
        ({"HF_HOME": "/f", "XDG_CACHE_HOME": "/x"}, "/f/hub"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/home/me"}, "/x/huggingface/hub"),
        ({"HOME": "/home/me"}, "/home/me/.cache/huggingface/hub"),
    ],
)
def test_cache_folder(environ: Mapping[str, str], expected: str) -> None:
    assert resolve.cache_dir(environ) == Path(expected)


def test_listing_of_the_cache(tmp_path: Path) -> None:
    cache_repo(tmp_path, "user/one", "one-Q8_0.gguf", "sub/one-q8_0.gguf", "mmproj-F16.gguf", "README.md")
    cache_repo(tmp_path, "user/two", "two-F16-00001-of-00002.gguf", "two-F16-00002-of-00002.gguf", branch="dev")
    cache_repo(tmp_path, "user/none", "plain.gguf")
    cache_repo(tmp_path, "user/bad--name", "x-Q8_0.gguf")
    (hub_cache.repo_dir(tmp_path, "user/noref") / "snapshots" / ("b" * 40)).mkdir(parents=True)
    (tmp_path / "datasets--user--x").mkdir()
    assert list_cached({"LLAMA_CACHE": str(tmp_path)}) == ["user/one:Q8_0", "user/two:F16"]
    assert list_cached({"LLAMA_CACHE": str(tmp_path / "missing")}) == []


def test_a_link_without_its_blob_is_ignored(tmp_path: Path) -> None:
    cache_repo(tmp_path, "user/one", "one-Q8_0.gguf")
    for blob in (hub_cache.repo_dir(tmp_path, "user/one") / "blobs").iterdir():
        blob.unlink()
    assert list_cached({"LLAMA_CACHE": str(tmp_path)}) == []


@pytest.mark.parametrize(
    "repo", ["a", "a/b/c", "a//b", "../b", "a/..", "-a/b", "a/b-", "a b/c", "a/b:", "x/" + "y" * 300]
)
def test_invalid_repository_names(repo: str) -> None:
    assert not hub_cache.is_repo_name(repo)


def test_cached_files_are_used_without_a_request(tmp_path: Path, environ: dict[str, str], local_hub: LocalHub) -> None:
    cache_repo(tmp_path / "cache", REPO, "model-Q8_0.gguf", "mmproj-model-F16.gguf", "x-F16-00001-of-00002.gguf")
    files = resolve_files(Settings.of(hf_repo=f"{REPO}:q8_0"), environ)
    assert (files.model.name, files.mmproj and files.mmproj.name) == ("model-Q8_0.gguf", "mmproj-model-F16.gguf")
    assert resolve_files(Settings.of(hf_repo=REPO, mmproj_auto=False), environ).mmproj is None
    assert local_hub.requests == []


@pytest.mark.parametrize("offline", [{"offline": True}, {"HF_HUB_OFFLINE": "1"}])
def test_offline_sends_no_request(
    tmp_path: Path, environ: dict[str, str], local_hub: LocalHub, offline: Mapping[str, object]
) -> None:
    cache_repo(tmp_path / "cache", REPO, "model-Q8_0.gguf", "model-F16-00001-of-00002.gguf")
    settings = Settings.of(hf_repo=f"{REPO}:F16", offline="offline" in offline)
    environ |= {name: "1" for name in offline if name.isupper()}
    with pytest.raises(ModelFilesError, match=r"tag F16 in user/model-GGUF; it has model-F16-00001.*model-Q8_0"):
        resolve_files(settings, environ)
    assert local_hub.requests == []


# Downloads


def test_download_lands_in_the_cache(environ: dict[str, str], local_hub: LocalHub) -> None:
    files = resolve_files(Settings.of(hf_repo=REPO), environ)
    assert files.model.read_bytes() == FILES["model-Q4_K_M.gguf"]
    assert files.mmproj is not None
    assert files.mmproj.read_bytes() == FILES["mmproj-model-F16.gguf"]
    assert files.model.is_symlink()
    assert not os.readlink(files.model).startswith("/")
    assert list_cached(environ) == [f"{REPO}:Q4_K_M"]
    asked = len(local_hub.requests)
    assert resolve_files(Settings.of(hf_repo=REPO), environ) == files
    assert len(local_hub.requests) == asked


def test_all_shards_and_progress(environ: dict[str, str]) -> None:
    seen: list[resolve.DownloadProgress] = []
    files = resolve_files(Settings.of(hf_repo=f"{REPO}:BF16", mmproj_auto=False), environ, seen.append)
    assert files.model.read_bytes() == BIG
    assert (files.model.parent / "model-BF16-00002-of-00002.gguf").read_bytes() == b"GGUF tail"
    big = [progress for progress in seen if progress.url.endswith("00001-of-00002.gguf")]
    assert (big[-1].downloaded, big[-1].total) == (len(BIG), len(BIG))
    assert [progress.downloaded for progress in big] == sorted(progress.downloaded for progress in big)


def test_a_file_by_name(environ: dict[str, str]) -> None:
    settings = Settings.of(hf_repo=f"{REPO}:ignored", hf_file="model-Q8_0.gguf", mmproj_auto=False)
    assert resolve_files(settings, environ).model.read_bytes() == FILES["model-Q8_0.gguf"]
    with pytest.raises(ModelFilesError, match=r"no complete file nothing\.gguf in user/model-GGUF; it has big/"):
        resolve_files(Settings.of(hf_repo=REPO, hf_file="nothing.gguf"), environ)


def test_a_long_listing_is_read_in_pages(environ: dict[str, str], local_hub: LocalHub) -> None:
    local_hub.faults.page_size = 2
    assert resolve_files(Settings.of(hf_repo=f"{REPO}:Q8_0"), environ).model.name == "model-Q8_0.gguf"


def test_a_new_commit_keeps_unchanged_files(environ: dict[str, str], local_hub: LocalHub) -> None:
    resolve_files(Settings.of(hf_repo=f"{REPO}:Q8_0"), environ)
    local_hub.files[REPO]["model-Q4_K_M.gguf"] = b"GGUF four, better"
    files = resolve_files(Settings.of(hf_repo=f"{REPO}:Q4_K_M"), environ)
    assert files.model.read_bytes() == b"GGUF four, better"
    assert list_cached(environ) == [f"{REPO}:Q4_K_M", f"{REPO}:Q8_0"]


def test_a_download_resumes_after_a_broken_connection(environ: dict[str, str], local_hub: LocalHub) -> None:
    local_hub.faults.cut_after = 1 << 20
    local_hub.faults.cuts = 2
    files = resolve_files(Settings.of(hf_repo=REPO, hf_file="big/model-BF16-00001-of-00002.gguf"), environ)
    assert files.model.read_bytes() == BIG
    resumed = [range_ for range_ in local_hub.ranges() if range_]
    assert [int(range_[6:].partition("-")[0]) for range_ in resumed] == [1 << 20, 2 << 20]


def test_a_killed_download_resumes_in_the_next_process(environ: dict[str, str], local_hub: LocalHub) -> None:
    code = (
        "import os\n"
        "from llama_corral.common.hub.resolve import resolve_files\n"
        "from llama_corral.presets.options.settings import Settings\n"
        "def die(progress): os._exit(9) if progress.downloaded >= 1 << 20 else None\n"
        f"resolve_files(Settings.of(hf_repo={REPO!r}, hf_file='big/model-BF16-00001-of-00002.gguf'), os.environ, die)"
    )
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environ}, check=False)
    assert killed.returncode == 9
    unfinished = list(Path(environ["LLAMA_CACHE"]).rglob("*" + download.UNFINISHED))
    assert any(path.stat().st_size >= 1 << 20 for path in unfinished)
    assert list_cached(environ) == []
    files = resolve_files(Settings.of(hf_repo=REPO, hf_file="big/model-BF16-00001-of-00002.gguf"), environ)
    assert files.model.read_bytes() == BIG
    assert any(range_.startswith("bytes=") for range_ in local_hub.ranges())
    assert not list(Path(environ["LLAMA_CACHE"]).rglob("*" + download.UNFINISHED))


def test_a_server_that_ignores_ranges_still_serves(environ: dict[str, str], local_hub: LocalHub) -> None:
    local_hub.faults.cut_after, local_hub.faults.ignore_ranges = 1 << 20, True
    files = resolve_files(Settings.of(hf_repo=REPO, hf_file="big/model-BF16-00001-of-00002.gguf"), environ)
    assert files.model.read_bytes() == BIG


def test_leftovers_of_a_longer_file_are_replaced(environ: dict[str, str], local_hub: LocalHub) -> None:
    blob = (
        hub_cache.repo_dir(resolve.cache_dir(environ), REPO)
        / "blobs"
        / hashlib.sha256(FILES["model-Q8_0.gguf"]).hexdigest()
    )
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"cut")  # a blob of the wrong size
    blob.with_name(blob.name + download.UNFINISHED).write_bytes(b"x" * 99)
    assert resolve_files(Settings.of(hf_repo=f"{REPO}:Q8_0"), environ).model.read_bytes() == FILES["model-Q8_0.gguf"]


def test_a_damaged_file_is_refused_and_deleted(environ: dict[str, str], local_hub: LocalHub) -> None:
    local_hub.faults.damaged = True
    with pytest.raises(ModelFilesError, match="damaged"):
        resolve_files(Settings.of(hf_repo=f"{REPO}:Q8_0"), environ)
    local_hub.faults.damaged = False
    assert resolve_files(Settings.of(hf_repo=f"{REPO}:Q8_0"), environ).model.read_bytes() == FILES["model-Q8_0.gguf"]


def test_parallel_processes_download_a_file_once(environ: dict[str, str], local_hub: LocalHub) -> None:
    settings = Settings.of(hf_repo=REPO, hf_file="big/model-BF16-00001-of-00002.gguf", mmproj_auto=False)
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(resolve_files, settings, environ) for _ in range(8)]
    assert {future.result().model.name for future in running} == {"model-BF16-00001-of-00002.gguf"}
    assert sum("resolve" in path for path in local_hub.paths()) == 2  # both shards
    assert resolve_files(settings, environ).model.read_bytes() == BIG


def test_segments_of_a_huge_file(tmp_path: Path, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SEGMENT", 1 << 20)
    local_hub.plain["big.gguf"] = BIG
    work = download.Transfer(local_hub.url + "/plain/big.gguf", tmp_path / "big.gguf", size=len(BIG))
    with download.new_client() as client:
        download.fetch(client, work, resolve.ignore_progress, threading.Event())
    assert work.target.read_bytes() == BIG
    assert local_hub.ranges() == [f"bytes={i << 20}-{(i + 1 << 20) - 1}" for i in range(3)]


def test_the_token_is_sent_to_the_hub_but_not_after_redirects(environ: dict[str, str], local_hub: LocalHub) -> None:
    with LocalHub(local_hub.files) as storage:
        local_hub.faults.redirect = storage.url.replace("127.0.0.1", "localhost")
        resolve_files(Settings.of(hf_repo=f"{REPO}:Q8_0", hf_token=TOKEN), environ)
        assert {headers.get("authorization") for _, _, headers in local_hub.requests} == {f"Bearer {TOKEN}"}
        assert {headers.get("authorization") for _, _, headers in storage.requests} == {None}


def test_an_invalid_token_is_not_sent(environ: dict[str, str], local_hub: LocalHub) -> None:
    resolve_files(Settings.of(hf_repo=f"{REPO}:Q8_0", hf_token="secret"), environ)
    assert {headers.get("authorization") for _, _, headers in local_hub.requests} == {None}


def test_errors_of_the_hub_say_what_to_do(environ: dict[str, str], local_hub: LocalHub) -> None:
    with pytest.raises(ModelFilesError, match=r"repository user/nothing on http://127.* private and needs --hf-token"):
        resolve_files(Settings.of(hf_repo="user/nothing"), environ)
    with pytest.raises(
        ModelFilesError, match=r"no complete GGUF model with the tag Q5 in user/model-GGUF; it has big/model"
    ):
        resolve_files(Settings.of(hf_repo=f"{REPO}:Q5"), environ)
    with pytest.raises(ModelFilesError, match="expected user/model"):
        resolve_files(Settings.of(hf_repo="just-a-name"), environ)
    local_hub.faults.gated = True
    with pytest.raises(ModelFilesError, match="is gated: accept its conditions"):
        resolve_files(Settings.of(hf_repo=REPO), environ)
    with pytest.raises(ModelFilesError, match=r"cannot reach http://127\.0\.0\.1:9 to look up"):
        resolve_files(Settings.of(hf_repo=REPO), environ | {"MODEL_ENDPOINT": "http://127.0.0.1:9"})


def test_a_full_disk_is_detected_before_the_download(
    environ: dict[str, str], local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = download.os.statvfs("/")
    free = usage.f_bavail * usage.f_frsize
    monkeypatch.setattr(local_hub, "files", {REPO: {"model-Q8_0.gguf": Sparse(free * 2)}})
    with pytest.raises(ModelFilesError, match=r"needs .* GB, but .* GB left"):
        resolve_files(Settings.of(hf_repo=REPO), environ)


class Sparse(bytes):
    """File content that reports a large length, but has few bytes."""

    size: int

    def __new__(cls, size: int) -> Sparse:
        made = super().__new__(cls, b"GGUF")
        made.size = size
        return made

    def __len__(self) -> int:
        return self.size


# Addresses and local files


def test_plain_url(tmp_path: Path, environ: dict[str, str], local_hub: LocalHub) -> None:
    local_hub.plain["folder/some-Q8_0.gguf"] = BIG
    local_hub.faults.cut_after = 1 << 20
    url = local_hub.url + "/plain/folder/some-Q8_0.gguf"
    settings = Settings.of(model_url=url + "?download=true", hf_token=TOKEN)
    files = resolve_files(settings, environ)
    assert files.model == tmp_path / "cache" / "some-Q8_0.gguf"
    assert files.model.read_bytes() == BIG
    assert [headers.get("if-range") is not None for _, _, headers in local_hub.requests] == [False, True]
    asked = len(local_hub.requests)
    assert resolve_files(settings, environ) == files
    assert len(local_hub.requests) == asked
    wanted = tmp_path / "elsewhere" / "mine.gguf"
    assert resolve_files(Settings.of(model_url=url, model=str(wanted)), environ).model == wanted
    assert wanted.read_bytes() == BIG


def test_plain_url_whose_file_changes_during_the_download(
    tmp_path: Path, environ: dict[str, str], local_hub: LocalHub
) -> None:
    local_hub.plain["a.gguf"] = b"GGUF new content"
    unfinished = tmp_path / "cache" / ("a.gguf" + download.UNFINISHED)
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"GGUF old")
    unfinished.with_name(unfinished.name + ".etag").write_text('"old"')
    files = resolve_files(Settings.of(model_url=local_hub.url + "/plain/a.gguf"), environ)
    assert files.model.read_bytes() == b"GGUF new content"


def test_plain_url_of_shards(tmp_path: Path, environ: dict[str, str], local_hub: LocalHub) -> None:
    local_hub.plain |= {f"x-0000{i}-of-00002.gguf": b"GGUF %d" % i for i in (1, 2)}
    settings = Settings.of(
        model_url=local_hub.url + "/plain/x-00001-of-00002.gguf", model=str(tmp_path / "own" / "name.gguf")
    )
    assert resolve_files(settings, environ).model == tmp_path / "own" / "x-00001-of-00002.gguf"
    assert (tmp_path / "own" / "x-00002-of-00002.gguf").read_bytes() == b"GGUF 2"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("{hub}/plain/no.gguf", "does not exist"),
        ("ftp://x/y.gguf", "neither http nor https"),
        ("nonsense", "neither http"),
    ],
)
def test_plain_url_that_is_refused(environ: dict[str, str], local_hub: LocalHub, url: str, complaint: str) -> None:
    with pytest.raises(ModelFilesError, match=complaint):
        resolve_files(Settings.of(model_url=url.format(hub=local_hub.url)), environ)


def test_a_failing_server_is_tried_three_times(tmp_path: Path, local_hub: LocalHub) -> None:
    local_hub.plain["a.gguf"] = b"GGUF"
    local_hub.faults.status = 503
    work = download.Transfer(local_hub.url + "/plain/a.gguf?token=secret", tmp_path / "a.gguf", retry_delay=0)
    with (
        download.new_client() as client,
        pytest.raises(ModelFilesError, match=r"a\.gguf: the server answered 503") as caught,
    ):
        download.fetch(client, work, resolve.ignore_progress, threading.Event())
    assert len(local_hub.requests) == download.ATTEMPTS
    assert "secret" not in str(caught.value)


def test_local_files(tmp_path: Path) -> None:
    for name in ("a.gguf", "m.gguf", "s-00001-of-00002.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    files = resolve_files(Settings.of(model=str(tmp_path / "a.gguf"), mmproj=str(tmp_path / "m.gguf")), {})
    assert files == resolve.ModelFiles(tmp_path / "a.gguf", tmp_path / "m.gguf")
    without = Settings.of(model=str(tmp_path / "a.gguf"), mmproj=str(tmp_path / "m.gguf"), mmproj_auto=False)
    assert resolve_files(without, {}).mmproj is None
    with pytest.raises(ModelFilesError, match=r"missing\.gguf: no such file"):
        resolve_files(Settings.of(model=str(tmp_path / "missing.gguf")), {})
    with pytest.raises(ModelFilesError, match=r"s-00002-of-00002\.gguf: no such file \(a part of"):
        resolve_files(Settings.of(model=str(tmp_path / "s-00001-of-00002.gguf")), {})
    with pytest.raises(ModelFilesError, match="no model given"):
        resolve_files(Settings.of(), {})


def test_drafts(tmp_path: Path) -> None:
    environ = {"LLAMA_CACHE": str(tmp_path)}
    cache_repo(tmp_path, "user/main", "main-Q8_0.gguf", "mtp-main-Q8_0.gguf")
    cache_repo(tmp_path, "user/draft", "small-Q4_0.gguf")
    cache_repo(tmp_path, "user/heads", "dflash-main-Q8_0.gguf", "eagle3-main-Q8_0.gguf")

    def draft(**more: object) -> tuple[str | None, str | None]:
        files = resolve_files(Settings.of(hf_repo="user/main", offline=True, **more), environ)  # type: ignore[arg-type]
        return files.draft and files.draft.name, files.draft_kind

    assert draft() == (None, None)
    assert draft(spec_type=("draft-mtp",)) == ("mtp-main-Q8_0.gguf", "mtp")
    assert draft(hf_repo_draft="user/draft") == ("small-Q4_0.gguf", None)
    assert draft(hf_repo_draft="user/heads") == ("dflash-main-Q8_0.gguf", "dflash")
    assert draft(hf_repo_draft="user/main", spec_type=("draft-simple",)) == ("main-Q8_0.gguf", None)
    with pytest.raises(ModelFilesError, match="no complete GGUF model in user/heads"):
        draft(hf_repo_draft="user/heads", spec_type=("draft-simple",))
    assert draft(hf_repo_draft="user/heads", spec_type=("draft-eagle3",)) == ("eagle3-main-Q8_0.gguf", "eagle3")
    assert draft(hf_repo_draft="user/draft", model_draft="small-Q4_0.gguf") == ("small-Q4_0.gguf", None)


# Repositories of presets


def test_presets_from_a_repository(environ: dict[str, str], local_hub: LocalHub) -> None:
    settings = Settings.of(hf_repo="user/presets")
    path = resolve.remote_preset(settings, environ)
    assert path is not None
    assert path.read_text() == "[one]\nmodel = a.gguf\n"
    local_hub.files["user/presets"]["preset.ini"] = b"[two]\nmodel = b.gguf\n"
    newer = resolve.remote_preset(settings, environ)
    assert newer is not None
    assert newer.read_text() == "[two]\nmodel = b.gguf\n"
    unreachable = environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert resolve.remote_preset(settings, unreachable) == newer
    assert resolve.remote_preset(Settings.of(hf_repo="user/presets", offline=True), environ) == newer


def test_a_repository_of_models_has_no_presets(environ: dict[str, str], local_hub: LocalHub) -> None:
    settings = Settings.of(hf_repo=REPO)
    assert resolve.remote_preset(settings, environ) is None
    resolve_files(settings, environ)
    asked = len(local_hub.requests)
    assert resolve.remote_preset(settings, environ) is None
    assert len(local_hub.requests) == asked, "a cached model needs no request"


def test_find_cached_sends_no_request(tmp_path: Path) -> None:
    environ = {"LLAMA_CACHE": str(tmp_path)}
    cache_repo(tmp_path, "user/one", "one-Q8_0.gguf", "mmproj-one-F16.gguf")
    found = resolve.find_cached(environ, "user/one")
    assert {role: path.name for role, path in found.items()} == {
        "model": "one-Q8_0.gguf",
        "mmproj": "mmproj-one-F16.gguf",
    }
    assert resolve.find_cached(environ, "user/other:Q8_0") == {}
    assert resolve.find_cached(environ, "nonsense") == {}
    assert RepoModelFiles().files == ()


# Names that differ in upper and lower case, which a hub does not distinguish


@pytest.mark.parametrize("asked", ["USER/one", "user/ONE:q8_0", "User/One:Q8_0"])
def test_a_cached_repository_is_found_in_any_case(tmp_path: Path, asked: str) -> None:
    environ = {"LLAMA_CACHE": str(tmp_path)}
    cache_repo(tmp_path, "user/One", "one-Q8_0.gguf", "mmproj-one-F16.gguf")
    found = resolve.find_cached(environ, asked)
    assert found["model"].parts[-4:] == ("models--user--One", "snapshots", "a" * 40, "one-Q8_0.gguf")
    assert set(found) == {"model", "mmproj"}
    offline = Settings.of(hf_repo=asked, offline=True)
    assert resolve_files(offline, environ).model == found["model"]
    assert resolve.list_cached(environ) == ["user/One:Q8_0"]


def test_the_exact_case_is_preferred(tmp_path: Path) -> None:
    for repo in ("user/ONE", "user/one", "user/One"):
        cache_repo(tmp_path, repo, f"{repo[5:]}-Q8_0.gguf")
        assert find_name(tmp_path, repo) == f"{repo[5:]}-Q8_0.gguf"
    assert find_name(tmp_path, "User/one") == "ONE-Q8_0.gguf", "the first one in the order of the names"
    (hub_cache.repo_dir(tmp_path, "user/one") / "refs" / "main").unlink()
    assert find_name(tmp_path, "user/one") == "ONE-Q8_0.gguf", "a folder without a commit has no files"


def find_name(cache: Path, repo: str) -> str:
    return resolve.find_cached({"LLAMA_CACHE": str(cache)}, repo)["model"].name


def test_a_repository_that_is_added_later_is_found_in_any_case(tmp_path: Path) -> None:
    environ = {"LLAMA_CACHE": str(tmp_path / "cache")}
    assert resolve.find_cached(environ, "USER/one") == {}
    cache_repo(tmp_path / "cache", "user/two", "two-Q8_0.gguf")
    assert resolve.find_cached(environ, "USER/one") == {}
    stat = (tmp_path / "cache").stat()
    os.utime(tmp_path / "cache", ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**9))  # some time passes
    assert resolve.find_cached(environ, "USER/one") == {}
    cache_repo(tmp_path / "cache", "user/one", "one-Q8_0.gguf")
    assert resolve.find_cached(environ, "USER/one")["model"].name == "one-Q8_0.gguf"


def test_missing_files_are_downloaded_into_the_folder_that_is_there(
    environ: dict[str, str], local_hub: LocalHub
) -> None:
    cache = Path(environ["LLAMA_CACHE"])
    cache_repo(cache, REPO, "unrelated.txt")
    model = resolve_files(Settings.of(hf_repo=REPO.upper()), environ).model
    assert model.is_relative_to(hub_cache.repo_dir(cache, REPO))
    assert [path.name for path in cache.glob("models--*")] == [hub_cache.repo_dir(cache, REPO).name]
