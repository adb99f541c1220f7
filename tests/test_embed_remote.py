"""Sound that lies elsewhere: a web server, S3 (moto's server, in a process of its own).

* Files, patterns, folders, lists, and members of tar archives embed as the same files here; the order is the same.
* What is in an output is not embedded again, what changed is; where a listing tells of changes nothing else is asked.
* Nothing is held in memory as a whole.
* A server that breaks off, or is gone, is a failure by name; the others are not affected, and --append mends it.
* A server that gives no parts of files, and a library that is missing, are said.
"""

import http.server
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from pathlib import Path

import numpy
import pytest
import soundfile

from hear_jepa.cli import main
from hear_jepa.commands import embed as embed_command
from hear_jepa.errors import AudioError
from hear_jepa.explore.excerpt import read_excerpt
from hear_jepa.files.find import find_sources
from hear_jepa.files.formats import load_embeddings

BUCKET = "s3://sounds"
LARGE = 24 * 2**20


def embed(source, out, weights, *options) -> int:
    return main(["embed", str(source), "--out", str(out), "--model", weights, *options])


S3_SERVER = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)  # at a port that is free
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minute) -> Path:
    """Four sounds, and an archive of them."""
    folder = tmp_path_factory.mktemp("www")
    for number, seconds in enumerate([0.03, 1, 2.3, 5.04]):
        soundfile.write(folder / f"{number}.flac", minute[9000 * number :][: int(16000 * seconds)].numpy(), 16000)
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number in range(4):
            tar.add(folder / f"{number}.flac", f"./deep/{number}.flac")
            tar.add(__file__, f"deep/{number}.txt")
    return folder


@pytest.fixture(scope="module")
def expected(folder, weights, tmp_path_factory):
    """The embeddings of the four."""
    out = tmp_path_factory.mktemp("here") / "out.npz"
    assert embed(folder, out, weights) == 0
    return load_embeddings(out).embeddings


class Server(http.server.ThreadingHTTPServer):
    """Serves the files of `folder`; of those in `broken`, the first half; parts of files unless told not to."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.broken, self.parts = folder, set(), True
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def translate_path(self, path):
        return str(self.server.folder / path.lstrip("/"))

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if path.is_dir() or not path.is_file():
            return super().do_GET()
        content = path.read_bytes()
        if wanted and self.server.parts:
            first, last = wanted.removeprefix("bytes=").split("-")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[int(first) : int(last) + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if path.name in self.server.broken else content)


@pytest.fixture
def web(folder, tmp_path):
    """A web server of this machine, on a copy of the sounds."""
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    with Server(shutil.copytree(folder, tmp_path / "www")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def s3(folder):
    """A bucket of the sounds; fsspec's file system of it."""
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs")
    server = subprocess.Popen([sys.executable, "-c", S3_SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    port = int(server.stdout.readline())  # printed when it listens
    variables = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    variables |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        try:
            system = fsspec.filesystem("s3", skip_instance_cache=True)
            system.mkdir(BUCKET)
            system.put([str(path) for path in folder.iterdir()], f"{BUCKET}/deep/")
            yield system
        finally:
            server.kill()
            server.wait()


def spy(monkeypatch) -> list:
    """The sounds that are embedded from now on."""
    embedded, embed_pieces = [], embed_command.embed_pieces
    monkeypatch.setattr(
        embed_command, "embed_pieces", lambda m, paths, *a: embedded.extend(paths) or embed_pieces(m, paths, *a)
    )
    return embedded


def assert_same(out, paths, expected) -> None:
    found = load_embeddings(out)
    assert found.paths == paths and not found.failed
    numpy.testing.assert_allclose(found.embeddings, expected, atol=1e-5)


def test_urls_embed_as_the_files(weights, tmp_path, web, expected, monkeypatch):
    (web.folder / "damaged.flac").write_bytes(b"fLaC and no more")
    urls = [f"{web.address}/{name}" for name in ("2.flac", "3.flac", "damaged.flac", "gone.flac")]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    out = tmp_path / "out.npz"
    assert embed(tmp_path / "list.txt", out, weights) == 1
    found = load_embeddings(out)
    assert found.paths == urls[:2] and list(found.failed) == urls[2:]
    numpy.testing.assert_allclose(found.embeddings, expected[2:], atol=1e-5)
    embedded = spy(monkeypatch)
    shutil.copy(web.folder / "1.flac", web.folder / "3.flac")
    assert embed(tmp_path / "list.txt", out, weights, "--append") == 1
    assert sorted(sound.path for sound in embedded) == urls[1:]  # what changed, and what failed
    web.parts = False  # whole files need none
    assert embed(f"{web.address}/*.flac", tmp_path / "all.npz", weights) == 1
    assert len(load_embeddings(tmp_path / "all.npz").paths) == 4


@pytest.mark.parametrize("name", ["", "/deep", "/deep/*.flac"])
def test_s3_embeds_as_the_files(weights, tmp_path, s3, expected, monkeypatch, name):
    out = tmp_path / "out.npz"
    assert embed(BUCKET + name, out, weights) == 0
    assert_same(out, [f"{BUCKET}/deep/{number}.flac" for number in range(4)], expected)
    embedded = spy(monkeypatch)
    monkeypatch.setattr(type(s3), "info", lambda *_: pytest.fail("a listing tells"))
    s3.pipe_file(f"{BUCKET}/deep/1.flac", s3.cat_file(f"{BUCKET}/deep/1.flac"))  # again, and no other
    assert embed(BUCKET + name, out, weights, "--append") == 0 and not embedded
    changed = s3.cat_file(f"{BUCKET}/deep/1.flac")
    s3.pipe_file(f"{BUCKET}/deep/1.flac", s3.cat_file(f"{BUCKET}/deep/2.flac"))
    try:
        assert embed(BUCKET + name, out, weights, "--append") == 0
    finally:
        s3.pipe_file(f"{BUCKET}/deep/1.flac", changed)
    assert [sound.path for sound in embedded] == [f"{BUCKET}/deep/1.flac"]
    numpy.testing.assert_allclose(load_embeddings(out).embeddings, expected[[0, 2, 2, 3]], atol=1e-5)


@pytest.mark.parametrize("where", ["web", "s3"])
def test_members_of_remote_archives_embed_as_the_files(
    request, weights, tmp_path, expected, minute, monkeypatch, where
):
    place = request.getfixturevalue(where)
    archive = f"{place.address}/shard.tar" if where == "web" else f"{BUCKET}/deep/shard.tar"
    out, paths = tmp_path / "out.npz", [f"{archive}/deep/{number}.flac" for number in range(4)]
    assert embed(archive, out, weights) == 0
    assert_same(out, paths, expected)
    embedded = spy(monkeypatch)
    assert embed(archive, out, weights, "--append") == 0 and not embedded
    (tmp_path / "table.csv").write_text(f"path,start_s,end_s\n{paths[3]},1,3\n")
    [sound] = find_sources([tmp_path / "table.csv"]).sounds
    assert sound.member is not None and sound.excerpt == (1, 3)
    assert len(read_excerpt(paths[3], 1, 3)) == 32000


@pytest.mark.parametrize("name", ["large.wav", "large.tar/large.wav"])
def test_nothing_is_held_as_a_whole(s3, tmp_path, name):
    content = tmp_path / "large.wav"
    content.write_bytes(os.urandom(LARGE))
    if "tar" in name:
        with tarfile.open(tmp_path / "large.tar", "w") as tar:
            tar.add(content, "large.wav")
    s3.put_file(str(tmp_path / name.split("/")[0]), f"{BUCKET}/large/{name.split('/')[0]}")
    try:
        [sound] = find_sources([f"{BUCKET}/large/{name.split('/')[0]}"]).sounds
        assert sound.path == f"{BUCKET}/large/{name}"
        tracemalloc.start()
        with sound.local() as path:
            peak = tracemalloc.get_traced_memory()[1]
            assert path.read_bytes() == content.read_bytes()
    finally:
        tracemalloc.stop()
        s3.rm(f"{BUCKET}/large", recursive=True)
    assert peak < LARGE / 2


def test_a_server_that_breaks_off_loses_nothing(weights, tmp_path, web, expected, monkeypatch):
    out, archive = tmp_path / "out.npz", f"{web.address}/shard.tar"
    (tmp_path / "list.txt").write_text(f"{web.address}/1.flac\n{web.address}/2.flac\n{archive}\n")
    found = find_sources([tmp_path / "list.txt"])  # all was well while it was listed
    web.broken = {"1.flac", "shard.tar"}
    monkeypatch.setattr(embed_command, "find_sources", lambda *_: found)
    assert embed(tmp_path / "list.txt", out, weights) == 1
    stored = load_embeddings(out)
    assert stored.paths == [f"{web.address}/2.flac"]
    assert list(stored.failed) == [f"{web.address}/1.flac", *(f"{archive}/deep/{number}.flac" for number in range(4))]
    web.broken, web.parts = set(), False  # no longer
    assert embed(tmp_path / "list.txt", out, weights, "--append") == 1
    stored = load_embeddings(out)
    assert set(stored.paths) == {f"{web.address}/1.flac", f"{web.address}/2.flac"} and len(stored.failed) == 4
    assert all("came in place of" in reason for reason in stored.failed.values())
    web.parts = True
    monkeypatch.undo()
    embedded = spy(monkeypatch)
    assert embed(tmp_path / "list.txt", out, weights, "--append") == 0
    assert len(embedded) == 4
    stored = load_embeddings(out)
    assert not stored.failed and len(stored.paths) == 6
    numbers = [int(path[-6]) for path in stored.paths]
    numpy.testing.assert_allclose(stored.embeddings, expected[numbers], atol=1e-5)


def test_what_cannot_be_had_is_said(weights, tmp_path, web, monkeypatch, capsys):
    web.parts = False
    assert embed(f"{web.address}/shard.tar", tmp_path / "out.npz", weights) == 2
    assert "range requests" in capsys.readouterr().err
    web.parts, web.broken = True, {"shard.tar"}
    assert embed(f"{web.address}/shard.tar", tmp_path / "out.npz", weights) == 2
    assert f"{web.address}/shard.tar is no tar archive that can be read" in capsys.readouterr().err
    with pytest.raises(AudioError, match="nowhere.flac"):
        read_excerpt(f"{web.address}/nowhere.flac")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert embed("https://example.org/a.wav", tmp_path / "out.npz", weights) == 2
    assert "pip install fsspec" in capsys.readouterr().err
