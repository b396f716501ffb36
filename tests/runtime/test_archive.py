"""`pixelrt pack` and `unpack`: what goes in comes out, and nothing else does."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pixelrt import archive, archive_reader
from pixelrt.archive import LICENSES, SUMS, pack
from pixelrt.archive_reader import unpack
from pixelrt.bundle import Bundle, write_manifest
from pixelrt.cli import main
from pixelrt.errors import InputError

Entries = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Small files with a manifest's names, and engines beside, one of them left half by a stopped build."""
    folder, random = tmp_path / "bundle", np.random.default_rng(0)
    folder.mkdir()
    sizes = {"weights.data": 50_000, "embeddings.bin": 512, "tokenizer.json": 999, "encoder.fp32.onnx": 0}
    for name, size in sizes.items():
        (folder / name).write_bytes(random.bytes(size))
    graph = {"opset": 20, "inputs": [], "outputs": []}
    graph["files"] = [{"file": "encoder.fp32.onnx", "activations": "float32"}]
    about = {
        "name": "toy",
        "family": "psalm",
        "precision": {},
        "image": {},
        "prompt": {},
        "tokens": {"tokenizer": "tokenizer.json"},
        "embeddings": {"file": "embeddings.bin", "dtype": "float16", "shape": [1, 1]},
        "graphs": {"encoder": graph},
        "license": "the toy's own licence",
    }
    write_manifest(folder, about, list(sizes))
    engines = folder / "engines" / "orin"
    engines.mkdir(parents=True)
    (engines / "encoder.engine").write_bytes(random.bytes(70_000))
    (engines / ".encoder.engine.partial").write_bytes(b"half")
    return folder


@pytest.fixture
def packed(bundle: Path, tmp_path: Path) -> Path:
    pack(bundle, tmp_path / "a.tar")
    return tmp_path / "a.tar"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def entries(file: Path) -> Entries:
    with tarfile.open(file) as tar:
        return [(info, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]


def written(file: Path, members: Entries) -> Path:
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return file


def listed(members: Entries) -> Entries:
    """With a SHA256SUMS that says what is really there."""
    rest = [(info, data) for info, data in members if info.name != SUMS]
    lines = [f"{hashlib.sha256(data).hexdigest()}  {info.name}\n" for info, data in rest]
    return [plain(SUMS, "".join(lines).encode()), *rest]


def plain(name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def of_type(kind: bytes, name: str = "extra", target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info, _ = plain(name, b"")
    info.type, info.linkname = kind, target
    return info, b""


def refusal(file: Path, folder: Path) -> str:
    """The sentence; after it the folder's parent is as it was before."""
    before = sorted(os.listdir(folder.parent))
    with pytest.raises(InputError) as caught:
        unpack(file, folder)
    assert sorted(os.listdir(folder.parent)) == before
    return str(caught.value)


@pytest.mark.parametrize("engines", [False, True])
def test_round_trip(bundle: Path, tmp_path: Path, engines: bool) -> None:
    file, out = tmp_path / "deep" / "a.tar", tmp_path / "out"
    pack(bundle, file, engines=engines)
    assert os.listdir(file.parent) == ["a.tar"]
    assert unpack(file, out).sha256 == Bundle.read(bundle).sha256
    wanted = contents(bundle)
    del wanted["engines/orin/.encoder.engine.partial"]
    if not engines:
        del wanted["engines/orin/encoder.engine"]
    found = contents(out)
    licences = found.pop(LICENSES).decode()
    assert found == wanted
    assert "Apache License" in licences and Bundle.read(out).manifest["license"] in licences
    again = tmp_path / "again.tar"
    shutil.copytree(out, tmp_path / "renamed")
    os.utime(tmp_path / "renamed" / "manifest.json", (1, 1))
    pack(tmp_path / "renamed", again, engines=engines)
    assert again.read_bytes() == file.read_bytes()


def test_it_is_a_plain_tar(packed: Path, bundle: Path, tmp_path: Path) -> None:
    """Other programs list it, unpack it, and check it with nothing but SHA256SUMS."""
    if not all(map(shutil.which, ("tar", "sha256sum"))):
        pytest.skip("tar and sha256sum are not both here")
    out = tmp_path / "by_hand"
    out.mkdir()
    subprocess.run(["tar", "-xf", packed, "-C", out], check=True)
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", SUMS], cwd=out, check=True)
    assert set(contents(out)) == {*Bundle.read(bundle).manifest["files"], "manifest.json", LICENSES, SUMS}


def test_progress_reaches_the_end(bundle: Path, tmp_path: Path) -> None:
    for step in (pack, unpack):
        seen: list[tuple[int, int]] = []
        source, target = (
            (bundle, tmp_path / "a.tar") if step is pack else (tmp_path / "a.tar", tmp_path / "b")
        )
        step(source, target, progress=lambda name, done, total, seen=seen: seen.append((done, total)))
        done = [d for d, _ in seen]
        assert done == sorted(done) and seen[-1] == (seen[-1][1], (tmp_path / "a.tar").stat().st_size)


NAMES = ["../evil", "/evil", "a/../../evil", "./evil", "a//evil", "a\\evil", ".."]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_sums", [True, False])
def test_names_that_leave_the_folder(packed: Path, tmp_path: Path, name: str, in_sums: bool) -> None:
    members = [*entries(packed), plain(name, b"x")]
    file = written(tmp_path / "b.tar", listed(members) if in_sums else members)
    (tmp_path / "in").mkdir()
    said = refusal(file, tmp_path / "in" / "out")
    assert ("outside" in said or "damaged" in said) if in_sums else "does not list" in said
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.GNUTYPE_SPARSE, "no plain file"),
        (tarfile.XHDTYPE, "no plain file"),
        (tarfile.GNUTYPE_LONGNAME, "no plain file"),
    ],
)
def test_what_is_no_plain_file(packed: Path, tmp_path: Path, kind: bytes, said: str) -> None:
    """Even where SHA256SUMS lists it, and in place of a file that belongs there."""
    members = [
        of_type(kind, info.name, "/etc/passwd") if info.name == "tokenizer.json" else (info, data)
        for info, data in entries(packed)
    ]
    with (tmp_path / "b.tar").open("wb") as out:
        for info, data in members:
            out.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
        out.write(bytes(1024))
    assert said in refusal(tmp_path / "b.tar", tmp_path / "out")


def drop_last(members: Entries) -> Entries:
    return members[:-1]


def twice(members: Entries) -> Entries:
    return [*members, members[-1]]


def twice_in_sums(members: Entries) -> Entries:
    (_, sums), *rest = members
    return [plain(SUMS, sums + sums.splitlines(keepends=True)[-1]), *rest]


def one_bit(members: Entries) -> Entries:
    info, data = members[-1]
    return [*members[:-1], (info, bytes([data[0] ^ 1]) + data[1:])]


def foreign(members: Entries) -> Entries:
    return listed([*members, plain("run.sh", b"x")])


def within_a_file(members: Entries) -> Entries:
    return listed([*members, plain("manifest.json/x", b"x")])


def other_weights(members: Entries) -> Entries:
    """A SHA256SUMS that agrees with them; the manifest does not."""
    changed = [
        (info, bytes(len(data))) if info.name == "embeddings.bin" else (info, data) for info, data in members
    ]
    return listed(changed)


def no_manifest(members: Entries) -> Entries:
    return listed([m for m in members if m[0].name != "manifest.json"])


def no_sums(members: Entries) -> Entries:
    return members[1:]


def nonsense_in_sums(members: Entries) -> Entries:
    return [plain(SUMS, b"\xff\x00 hello\n"), *members[1:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_last, "lacks"),
        (twice, "twice"),
        (twice_in_sums, "twice"),
        (one_bit, "is damaged: the SHA-256 of"),
        (foreign, "no part of a bundle"),
        (within_a_file, "inside of a file"),
        (other_weights, "than its manifest says"),
        (no_manifest, "no bundle that this pixelrt reads"),
        (no_sums, "does not begin with SHA256SUMS"),
        (nonsense_in_sums, "SHA256SUMS has the line"),
    ],
)
def test_archives_that_are_refused(
    packed: Path, tmp_path: Path, change: Callable[[Entries], Entries], said: str
) -> None:
    file = written(tmp_path / "b.tar", change(entries(packed)))
    assert said in refusal(file, tmp_path / "out")


def test_cut_off_anywhere(packed: Path, tmp_path: Path) -> None:
    """In a header, in data, in padding, in the end; and with something after it."""
    whole = packed.read_bytes()
    end = len(whole.rstrip(b"\0"))
    marks = (0, 1, 511, 512, 700, 2000, len(whole) // 2, end, end // 512 * 512 + 512, len(whole) - 10240)
    for at in marks:
        (tmp_path / "b.tar").write_bytes(whole[:at])
        assert "tar " in refusal(tmp_path / "b.tar", tmp_path / "out"), at
    (tmp_path / "b.tar").write_bytes(whole + b"more")
    assert "follows its end" in refusal(tmp_path / "b.tar", tmp_path / "out")


def test_too_little_room(bundle: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    assert "0.00 GB free" in refusal(packed, tmp_path / "out")
    with pytest.raises(InputError, match="GB are needed"):
        pack(bundle, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_pack_refuses(bundle: Path, packed: Path, tmp_path: Path) -> None:
    """And leaves nothing behind."""
    before = sorted(os.listdir(tmp_path))
    for source, target, said in (
        (bundle, packed, "exists already"),
        (bundle, bundle / "b.tar", "in the bundle"),
        (tmp_path / "none", tmp_path / "b.tar", "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            pack(source, target)
    (bundle / "engines" / "orin" / "secret").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="is a link"):
        pack(bundle, tmp_path / "b.tar", engines=True)
    data = bytearray((bundle / "weights.data").read_bytes())
    data[5] ^= 1
    (bundle / "weights.data").write_bytes(data)
    with pytest.raises(InputError, match=r"weights\.data was altered"):
        pack(bundle, tmp_path / "b.tar")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_with_files_is_left_alone(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    unpack(packed, out)  # an empty one may be filled
    assert "exists already" in refusal(packed, out)
    assert "is no file" in refusal(tmp_path / "none.tar", tmp_path / "other")


def test_stopped_half_way(bundle: Path, packed: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))

    def stop(name: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(bundle, tmp_path / "b.tar", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        unpack(packed, tmp_path / "out", progress=stop)
    assert sorted(os.listdir(tmp_path)) == before


def test_memory_is_bounded(bundle: Path, tmp_path: Path) -> None:
    """A file of 48 MB passes through pieces of 1 MiB, both ways."""
    large = bundle / "engines" / "orin" / "encoder.engine"
    with large.open("wb") as out:
        out.truncate(48 << 20)
    tracemalloc.start()
    try:
        pack(bundle, tmp_path / "a.tar", engines=True)
        unpack(tmp_path / "a.tar", tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out" / "engines" / "orin" / "encoder.engine").stat().st_size == 48 << 20
    assert peak < 24 << 20  # 16 of them for a manifest of the largest size


def test_a_member_of_more_than_8_gib_has_one_header() -> None:
    """A 13B model's weights in fp16 are 26 GB; the old tar format ends at 8 GiB."""
    info = tarfile.TarInfo("weights.data")
    info.size = 26 << 30
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert len(header) == 512 and archive_reader._header(io.BytesIO(header), 27 << 30).size == 26 << 30


def test_commands(bundle: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "a.tar", tmp_path / "out"
    done = CliRunner().invoke(main, ["pack", str(bundle), str(file)], prog_name="pixelrt")
    sha256 = Bundle.read(bundle).sha256
    assert done.exit_code == 0 and f"manifest sha256 {sha256}" in done.output, done.output
    done = CliRunner().invoke(main, ["unpack", str(file), str(out)], prog_name="pixelrt")
    assert done.exit_code == 0 and sha256 in done.output and "next: pixelrt segment" in done.output
    done = CliRunner().invoke(main, ["unpack", str(file), str(out)], prog_name="pixelrt")
    assert done.exit_code == 2 and done.output.count("\n") == 1
