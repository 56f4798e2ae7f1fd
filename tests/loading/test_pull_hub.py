"""Models from a Hugging Face hub, here one on loopback: only data is fetched, errors have names."""

from __future__ import annotations

import collections
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from freehold.core.errors import ArgumentError, DownloadError, LoadError, ModelNotFoundError
from freehold.loading.hub import HubSource, parse_source, wanted_files
from freehold.loading.pull import list_models, pull, resolve
from support.checkpoints_hub import COMMIT, FakeHub, serving
from support.checkpoints_raw import entry, gguf_bytes, safetensors_bytes

SHARD = "model-00001-of-00001.safetensors"
INDEX = {"weight_map": {"x": SHARD}}
SAFETENSORS = {
    "config.json": b'{"model_type": "test"}',
    "generation_config.json": b"{}",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    SHARD: safetensors_bytes({"x": entry("U8", [9], 0, 9)}, bytes(range(9))),
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"Apache",
    "modeling_test.py": b"raise RuntimeError",
    "tokenizer.py": b"raise RuntimeError",
    "pytorch_model.bin": b"pickle",
    "original/consolidated.00.pth": b"pickle",
    "onnx/model.safetensors": b"other",
    "README.md": b"text",
}
DATA = {name for name in SAFETENSORS if "/" not in name and not name.endswith((".py", ".bin", ".md"))}
GGUFS = {
    "a-Q4_0.gguf": gguf_bytes(),
    "big/b-Q8_0.gguf": gguf_bytes(),
    "README.md": b"text",
    "config.json": b"{}",
}


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub, which reads its environment on import, ask this address."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    repositories = {
        "org/full": SAFETENSORS,
        "org/ggufs": GGUFS,
        "org/one-gguf": {"only.gguf": gguf_bytes(), "README.md": b""},
        "org/pickles": {"pytorch_model.bin": b"", "config.json": b"{}"},
        "org/broken": {**SAFETENSORS, SHARD: b"short"},
        "org/gated": {},
    }
    with serving(FakeHub(repositories, gated={"org/gated"})) as server:
        point_to(server.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def test_a_safetensors_repository(hub: FakeHub) -> None:
    path = pull("org/full")
    assert {file.name for file in path.iterdir()} == DATA
    assert hub.downloads() <= DATA
    assert resolve("full") == resolve("org/full") == path
    (known,) = list_models()
    assert (known.name, known.source, known.revision, known.licence) == (
        "full",
        "org/full",
        COMMIT,
        "apache-2.0",
    )
    assert known.size == len(SAFETENSORS[SHARD])


def test_what_is_in_the_cache_is_not_fetched_again(hub: FakeHub) -> None:
    pull("org/full")
    hub.requests.clear()
    pull("org/full", name="again")
    assert hub.downloads() == set()


def test_progress_ends_at_the_whole(hub: FakeHub) -> None:
    seen: list[tuple[str, int, int | None]] = []
    pull("org/full", progress=lambda *step: seen.append(step))
    what, done, total = seen[-1]
    assert what == "downloading org/full"
    assert done == total == sum(len(SAFETENSORS[name]) for name in DATA)


def test_progress_may_fail(hub: FakeHub) -> None:
    def broken(what: str, done: int, total: int | None) -> None:
        raise RuntimeError("the terminal is gone")

    with pytest.raises((RuntimeError, DownloadError), match="the terminal is gone"):
        pull("org/full", progress=broken)


def test_a_named_gguf(hub: FakeHub) -> None:
    path = pull("org/ggufs:big/b-Q8_0.gguf")
    assert path.name == "b-Q8_0.gguf"
    assert path.read_bytes() == GGUFS["big/b-Q8_0.gguf"]
    assert hub.downloads() == {"big/b-Q8_0.gguf"}
    assert resolve("b-Q8_0") == path


def test_the_only_gguf(hub: FakeHub) -> None:
    path = pull("org/one-gguf")
    assert path.name == "only.gguf"
    assert resolve("one-gguf") == path


def test_several_ggufs_need_a_name(hub: FakeHub) -> None:
    with pytest.raises(ArgumentError, match=r"(?s)2 GGUF files.*org/ggufs:a-Q4_0\.gguf.*big/b-Q8_0\.gguf"):
        pull("org/ggufs")
    with pytest.raises(ModelNotFoundError, match=r"(?s)holds no 'c\.gguf'.*a-Q4_0\.gguf"):
        pull("org/ggufs:c.gguf")
    assert hub.downloads() == set()


def test_pickles_alone_are_no_model(hub: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match="neither safetensors nor GGUF"):
        pull("org/pickles")
    assert hub.downloads() == set()


def test_unknown_repository(hub: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match="org/absent: no such repository"):
        pull("org/absent")


def test_gated_repository(hub: FakeHub) -> None:
    with pytest.raises(DownloadError, match="org/gated: its owner demands"):
        pull("org/gated")


def test_a_checkpoint_that_cannot_be_opened_gets_no_name(hub: FakeHub) -> None:
    with pytest.raises(LoadError, match="too few for a header"):
        pull("org/broken")
    assert list_models() == []


def test_a_taken_name_is_refused_before_anything_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "full.gguf").write_bytes(gguf_bytes())
    pull("full.gguf")
    with pytest.raises(ArgumentError, match="'full' is taken"):
        pull("org/full")
    assert hub.requests == []


def test_too_little_space(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, 5))
    with pytest.raises(DownloadError, match=r"org/full: .* GB are to be fetched"):
        pull("org/full")
    assert hub.downloads() == set()


def test_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(DownloadError, match=r"org/full: could not be fetched.*freehold pull /path/to/model"):
        pull("org/full")


class TestOffline:
    @pytest.fixture(autouse=True)
    def fetched(self, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
        """The cache holds two models, and the network is forbidden."""
        for source in ("org/full", "org/ggufs:a-Q4_0.gguf"):
            path = pull(source)
            assert path.exists()
        shutil.rmtree(Path("home"))
        hub.requests.clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return hub

    def test_the_cache_is_enough(self, hub: FakeHub) -> None:
        assert (pull("org/full") / SHARD).read_bytes() == SAFETENSORS[SHARD]
        assert pull("org/ggufs:a-Q4_0.gguf").read_bytes() == GGUFS["a-Q4_0.gguf"]
        assert {model.revision for model in list_models()} == {COMMIT}
        assert hub.requests == []

    def test_what_is_not_cached_is_named(self, hub: FakeHub) -> None:
        with pytest.raises(DownloadError, match=r"org/ggufs: big/b-Q8_0\.gguf is not in .* HF_HUB_OFFLINE"):
            pull("org/ggufs:big/b-Q8_0.gguf")
        with pytest.raises(DownloadError, match=r"org/absent: config\.json is not in"):
            pull("org/absent")
        assert hub.requests == []


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("org/name", HubSource("org/name", None)),
        ("O.r-g_1/Na.me", HubSource("O.r-g_1/Na.me", None)),
        ("org/name:a/b.gguf", HubSource("org/name", "a/b.gguf")),
        ("org", None),
        ("org/name/more", None),
        ("../name", None),
        ("org/name:file.bin", None),
        ("https://host/org/name", None),
        ("org/na me", None),
        ("", None),
    ],
)
def test_sources(source: str, parsed: HubSource | None) -> None:
    assert parse_source(source) == parsed


@pytest.mark.parametrize("file", ["../a.gguf", "/a.gguf", "b/../../a.gguf"])
def test_files_outside_the_repository(file: str) -> None:
    with pytest.raises(ArgumentError, match="inside the repository"):
        parse_source(f"org/name:{file}")


def test_all_parts_of_a_split_file() -> None:
    names = [f"{directory}/m-{i:05d}-of-00003.gguf" for directory in ("q4", "q8") for i in (1, 2, 3)]
    assert wanted_files(HubSource("org/name", names[4]), [*names, "q8/m.gguf"]) == names[3:]
    assert wanted_files(HubSource("org/name", None), names[:3]) == names[:3]
    with pytest.raises(ArgumentError, match="6 GGUF files"):
        wanted_files(HubSource("org/name", None), names)
