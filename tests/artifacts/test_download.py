"""Downloads: https only, cached, checked where the name carries a hash, and never half there."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.hub

from vitcod_cli.artifacts.checkpoint import read_checkpoint
from vitcod_cli.artifacts.download import download
from vitcod_cli.artifacts.provenance import provenance
from vitcod_cli.errors import VitcodError
from vitcod_cli.reporting import SilentReporter

CONTENT = os.urandom(1_000_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


class Answer(io.BytesIO):
    """What ``urlopen`` returns: bytes that know their length and where they came from."""

    def __init__(self, content: bytes, length: int | None = None, url: str = "https://x/") -> None:
        super().__init__(content)
        self.length, self.url = length, url

    def geturl(self) -> str:
        return self.url


class Web:
    """Stands for the web: answers, or an error, and the addresses that were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Answer | BaseException = Answer(CONTENT, len(CONTENT))

    def open(self, request: urllib.request.Request, timeout: float) -> Answer:
        assert timeout > 0
        self.asked.append(request.full_url)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    web = Web()
    monkeypatch.setattr(urllib.request, "urlopen", web.open)
    return web


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def refusal(url: str) -> str:
    with pytest.raises(VitcodError) as error:
        download(url, "--init-from", SilentReporter())
    message = str(error.value)
    assert message.startswith("--init-from ")
    assert message.endswith(".")
    return message


def files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


def test_a_file_is_downloaded_once(web: Web, cache: Path) -> None:
    url = f"https://host/deit-{HASH[:8]}.pth?download=1"
    for _ in range(2):
        path = download(url, "--init-from", SilentReporter())
        assert path.read_bytes() == CONTENT
    assert path == cache / f"deit-{HASH[:8]}.pth"
    assert web.asked == [url]
    assert files(cache) == [path.name]


def test_a_damaged_copy_is_downloaded_again(web: Web, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / f"deit-{HASH[:8]}.pth").write_bytes(CONTENT[:-1])
    path = download(f"https://host/deit-{HASH[:8]}.pth", "--init-from", SilentReporter())
    assert path.read_bytes() == CONTENT
    assert len(web.asked) == 1


def test_the_same_name_elsewhere_is_another_file(web: Web) -> None:
    first = download("https://host/a/model.safetensors", "--init-from", SilentReporter())
    web.answer = Answer(b"other", None)
    second = download("https://host/b/model.safetensors", "--init-from", SilentReporter())
    assert first.read_bytes() == CONTENT
    assert second.read_bytes() == b"other"
    assert first.suffix == second.suffix == ".safetensors"


def test_what_is_wrong_is_said_and_nothing_stays(web: Web, cache: Path) -> None:
    url = "https://host/deit-00000000.pth"
    assert HASH[:8] in refusal(url)
    web.answer = Answer(CONTENT[:1000], len(CONTENT))
    assert "only 1000 of 1000000 bytes" in refusal("https://host/deit.pth")
    web.answer = URLError("Name or service not known")
    assert "Name or service not known" in refusal(url)
    web.answer = TimeoutError("timed out")
    assert "timed out" in refusal(url)
    web.answer = Answer(CONTENT, len(CONTENT), url="http://host/deit.pth")
    assert "not https" in refusal(url)
    assert files(cache) == []


@pytest.mark.parametrize("url", ["http://host/x.pth", "ftp://host/x.pth", "file:///etc/passwd", "s3://bucket/x"])
def test_other_ways_than_https_are_refused_unasked(web: Web, url: str) -> None:
    assert "https://" in refusal(url)
    assert web.asked == []


def test_addresses_that_are_none(web: Web) -> None:
    assert "is no address" in refusal("https://[/x.pth")
    assert web.asked == []


@pytest.mark.parametrize("name", ["a%00b.pth", "x" * 1000 + ".pth", "%2e%2e%2fx.pth", "..%0a.pth"])
def test_names_that_no_file_can_have(web: Web, cache: Path, name: str) -> None:
    path = download(f"https://host/{name}", "--init-from", SilentReporter())
    assert path.read_bytes() == CONTENT
    assert path.parent == cache
    assert path.suffix == ".pth"


def test_a_file_larger_than_the_disk(web: Web, cache: Path) -> None:
    web.answer = Answer(CONTENT, 10**18)
    assert "free some space" in refusal("https://host/x.pth")
    assert files(cache) == []


def test_an_address_without_a_file(web: Web) -> None:
    assert "names no file" in refusal("https://host/")
    assert "names no file" in refusal("https://host")


def test_a_cache_that_cannot_be_written(web: Web, tmp_path: Path) -> None:
    (tmp_path / "hub").touch()
    with pytest.raises(VitcodError, match="TORCH_HOME"):
        download("https://host/x.pth", "--init-from", SilentReporter())


def test_processes_that_ask_together_download_once(web: Web) -> None:
    threads = [
        threading.Thread(target=download, args=("https://host/x.pth", "--init-from", SilentReporter()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(web.asked) == 1


def test_a_checkpoint_from_the_web(web: Web) -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"head.weight": torch.ones(2, 3)}}, buffer)
    web.answer = Answer(buffer.getvalue(), len(buffer.getvalue()))
    checkpoint = read_checkpoint("https://host/deit.pth", "--init-from")
    assert torch.equal(checkpoint.state_dict["head.weight"], torch.ones(2, 3))
    assert checkpoint.source == "https://host/deit.pth"
    assert checkpoint.sha256 == hashlib.sha256(buffer.getvalue()).hexdigest()


def test_what_a_file_says_of_its_source_is_no_secret() -> None:
    source = "https://user:word@example.org/models/deit.pth?token=secret#part"
    assert provenance("vitcod convert", source) == {"made_by": "vitcod convert", "source": "deit.pth"}
    assert provenance("vitcod convert", "models/what?.pth")["source"] == "what?.pth"
