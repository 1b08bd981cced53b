"""A Hub id becomes a folder, against a small local server that speaks the Hub's API."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.numpy

from sdjax.weights import CheckpointError, resolve
from sdjax.weights.hub import wanted_files
from tests.checkpoints import INDEX

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLAIN, HALF = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"
WEIGHTS = safetensors.numpy.save({"a": np.ones(3, np.float32)})
FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
    "README.md": b"not needed",
    "v1-5-pruned.ckpt": b"a pickle",
    "v1-5-pruned.safetensors": b"a single file",
    "safety_checker/model.safetensors": b"not needed",
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": WEIGHTS,
    "text_encoder/model.fp16.safetensors": WEIGHTS,
    "text_encoder/pytorch_model.bin": b"a pickle",
    "tokenizer/merges.txt": b"#version: 0.2\n",
    "tokenizer/vocab.json": b"{}",
    "unet/config.json": b"{}",
    f"unet/{PLAIN}": WEIGHTS,
    f"unet/{HALF}": WEIGHTS,
    "unet/diffusion_pytorch_model.bin": b"a pickle",
    "unet/diffusion_pytorch_model.non_ema.safetensors": WEIGHTS,
    "vae/config.json": b"{}",
    f"vae/{PLAIN}": WEIGHTS,
    f"vae/{HALF}": WEIGHTS,
}
FETCHED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    f"unet/{PLAIN}",
    "vae/config.json",
    f"vae/{PLAIN}",
}


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's API that huggingface_hub calls to download a repository's files."""

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        for owner_name, files in self.server.repositories.items():
            if path.startswith(f"api/models/{owner_name}/"):
                return self.api(owner_name, files, path.removeprefix(f"api/models/{owner_name}/"))
            if path.startswith(f"{owner_name}/resolve/"):
                revision, name = path.removeprefix(f"{owner_name}/resolve/").split("/", 1)
                if revision in ("main", COMMIT) and name in files:
                    if body:
                        self.server.sent.append(name)
                    return self.send(
                        200, files[name], {"X-Repo-Commit": COMMIT, "ETag": self.etag(name, files[name])}, body
                    )
        gated = "me/gated" in path
        self.send(403 if gated else 404, b"{}", {"X-Error-Code": "GatedRepo" if gated else "RepoNotFound"})

    def etag(self, name: str, data: bytes) -> str:
        return self.server.etags.get(name, etag(data))

    def api(self, owner_name: str, files: dict[str, bytes], what: str) -> None:
        kind, revision = what.split("/", 1)
        if revision.strip("/") not in ("main", COMMIT):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if kind == "tree":
            answer: object = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data).strip('"')}
                for name, data in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            answer = {
                "id": owner_name,
                "modelId": owner_name,
                "sha": COMMIT,
                "siblings": siblings,
                "tags": [],
            }
        self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def etag(data: bytes) -> str:
    return f'"{hashlib.sha1(data).hexdigest()}"'


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """The server, with HF_ENDPOINT set after huggingface_hub's import, and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.sent, server.etags = {"me/tiny": FILES}, [], {}
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def held(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_only_what_will_be_opened_is_fetched(hub):
    folder = resolve("me/tiny")
    assert held(folder) == FETCHED
    assert set(hub.sent) <= FETCHED  # equal files are fetched once
    assert (folder / "unet" / PLAIN).read_bytes() == WEIGHTS


def test_a_second_time_nothing_is_fetched(hub):
    folder = resolve("me/tiny")
    hub.sent.clear()
    assert resolve("me/tiny") == folder and not hub.sent


def test_variant(hub):
    half = {name.replace("model.safetensors", "model.fp16.safetensors") for name in FETCHED}
    assert held(resolve("me/tiny", variant="fp16")) == half
    with pytest.raises(CheckpointError, match=r"me/tiny/text_encoder has no variant 'fp61' \(nearest: fp16\)"):
        resolve("me/tiny", variant="fp61")


def test_shards():
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    other = "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
    names = [name for name in FILES if not name.startswith("unet/diff")] + [index, other, *shards]
    assert {name for name in wanted_files(names, None, "x") if "unet/diff" in name} == {index, *shards}


def test_an_image_encoder_is_fetched_where_there_is_no_text_encoder():
    """And what prepares its pictures; beside a text encoder it is an adapter's, which nothing here opens."""
    own = {"image_encoder/config.json", "image_encoder/model.safetensors", "feature_extractor/preprocessor_config.json"}
    variations = [name for name in FILES if not name.startswith(("text_encoder", "tokenizer"))]
    wanted = set(wanted_files([*variations, *own], None, "x"))
    assert wanted == own | {name for name in FETCHED if not name.startswith(("text_encoder", "tokenizer"))}
    assert "image_encoder/model.safetensors" not in wanted_files([*FILES, *own], None, "x")


def test_without_network_the_cache_is_taken(hub, monkeypatch):
    folder = resolve("me/tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("me/tiny") == folder


def test_without_network_and_cache(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="me/tiny is no folder here, not in the cache, .* cannot be reached"):
        resolve("me/tiny")


@pytest.mark.parametrize(
    "lost,what",
    [
        ("text_encoder/model.safetensors", "text_encoder holds no .* it holds: config.json"),
        ("vae/config.json", "vae/config.json is missing"),
        ("tokenizer/merges.txt", "tokenizer holds neither vocab.json and merges.txt nor tokenizer.json"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
    ],
)
def test_a_download_that_broke_off_says_so_with_the_network_s_own_error(hub, monkeypatch, lost, what):
    (resolve("me/tiny") / lost).unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=rf"cannot be reached \(.+\), and the copy .* is not whole.*{what}.*again"
    ):
        resolve("me/tiny")


def test_a_server_that_names_a_path_outside_the_cache(hub, tmp_path):
    """huggingface_hub 2.4 calls a file by its ETag, wherever that leads; such a snapshot is not used."""
    hub.etags["scheduler/scheduler_config.json"] = '"../../../evil.json"'
    with pytest.raises(CheckpointError, match="scheduler_config.json is a link.*leads out.*Do not trust this server"):
        resolve("me/tiny")


def test_unknown_repository_revision_and_gate(hub):
    with pytest.raises(CheckpointError, match="me/none is no folder here, and .*/me/none does not exist or is private"):
        resolve("me/none")
    with pytest.raises(CheckpointError, match="has no revision 'v9'"):
        resolve("me/tiny", revision="v9")
    with pytest.raises(CheckpointError, match="is gated: accept its licence"):
        resolve("me/gated")


def test_repositories_without_safetensors_or_index(hub):
    hub.repositories["me/old"] = {name: b for name, b in FILES.items() if not name.endswith(".safetensors")}
    hub.repositories["me/lora"] = {"README.md": b"", "lora.safetensors": WEIGHTS}
    with pytest.raises(CheckpointError, match=r"me/old/text_encoder holds its weights as pickles only"):
        resolve("me/old")
    with pytest.raises(CheckpointError, match="no checkpoint in the diffusers layout .* holds: README.md, lora"):
        resolve("me/lora")
    assert not hub.sent


def test_a_folder_wins_over_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "tiny").mkdir(parents=True)
    assert resolve("me/tiny").samefile(tmp_path / "me" / "tiny")
    assert not hub.sent


def test_names_that_are_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever lies beside the clone
    for name in ("nowhere", "/no/such/folder", "./me/tiny", "a/b/c", "../x", "me/.."):
        with pytest.raises(CheckpointError, match="neither a folder nor a file nor a Hub id"):
            resolve(name)
    with pytest.raises(CheckpointError, match="v1.ckpt is a pickle"):
        resolve("runwayml/v1.ckpt")


def test_a_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / "one.safetensors"
    path.write_bytes(WEIGHTS)
    assert resolve(path) == path
    (tmp_path / "zip.safetensors").write_bytes(b"PK\x03\x04" + bytes(20))
    with pytest.raises(CheckpointError, match="zip.safetensors is a pickle"):
        resolve(tmp_path / "zip.safetensors")


XL = {"text_encoder_2/config.json": b"{}", "text_encoder_2/model.safetensors": WEIGHTS, "tokenizer_2/vocab.json": b"{}"}


def test_both_text_encoders_of_sdxl_and_the_one_of_its_refiner(hub):
    hub.repositories["me/xl"] = FILES | XL | {"text_encoder_2/model.fp16.safetensors": WEIGHTS}
    assert held(resolve("me/xl")) == FETCHED | set(XL)
    refiner = {
        name: data for name, data in (FILES | XL).items() if name.split("/")[0] not in ("text_encoder", "tokenizer")
    }
    hub.repositories["me/refiner"] = refiner
    first = {name for name in FETCHED if name.split("/")[0] in ("text_encoder", "tokenizer")}
    assert held(resolve("me/refiner")) == FETCHED - first | set(XL)
