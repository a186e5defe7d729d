"""The scripts that build Kubernetes' programs and images, as far as they go without building."""

import gzip
import hashlib
import io
import json
import tarfile
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(name.replace("-", "_"), str(SCRIPTS / name))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def binaries() -> ModuleType:
    return script("kube-binaries")


@pytest.fixture
def images() -> ModuleType:
    return script("kube-images")


def program(path: Path) -> None:
    path.touch()
    path.chmod(0o755)


def test_cached_programs_are_not_built_again(binaries: ModuleType, tmp_path: Path) -> None:
    for option, names in binaries.SETS.items():
        target = tmp_path / "kube" / binaries.cache_key(option)
        target.mkdir(parents=True)
        for name in names:
            program(target / name)
        assert binaries.find_or_build(option, {"SLUICE_CACHE": str(tmp_path)}) == target


def test_given_programs_must_be_complete(binaries: ModuleType, tmp_path: Path) -> None:
    program(tmp_path / "etcd")
    with pytest.raises(binaries.Failure, match=r"has no kube-apiserver, kubectl$"):
        binaries.find_or_build("", {"KUBEBUILDER_ASSETS": str(tmp_path)})


def test_another_module_does_not_rebuild_the_api_server(
    binaries: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {option: binaries.cache_key(option) for option in binaries.SETS}
    (tmp_path / "go.mod").write_text("module other\n")
    other = binaries.PROGRAMS["coredns"]._replace(module=tmp_path)
    monkeypatch.setitem(binaries.PROGRAMS, "coredns", other)
    after = {option: binaries.cache_key(option) for option in binaries.SETS}
    assert {option for option in before if before[option] != after[option]} == {"--cluster"}


@pytest.mark.parametrize("arguments", [["--all"], ["--cluster", "--e2e"]])
def test_unknown_options_show_the_usage(
    binaries: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert binaries.main(arguments) == 2
    assert "Usage: scripts/kube-binaries" in capsys.readouterr().err


def archive(images: ModuleType, path: Path) -> Path:
    path.mkdir()
    content = {
        "pause": images.a_file("pause", b"\x7fELF", 0o755),
        "busybox": images.a_link("bin/sh", "busybox"),
    }
    layers = {k: images.write_layer(path / f"{k}.tar.gz", v) for k, v in content.items()}
    names = {"pause": ["example.net/pause:1", "example.net/pause:2"], "busybox": ["busybox:1"]}
    images.write_archive(path / "images.tar", names, layers)
    return path / "images.tar"


def test_archive_is_an_image_layout(images: ModuleType, tmp_path: Path) -> None:
    with tarfile.open(archive(images, tmp_path / "a")) as tar:
        files = {info.name: tar.extractfile(info).read() for info in tar}

    def blob(descriptor: dict[str, object]) -> bytes:
        content = files[f"blobs/{descriptor['digest']}".replace(":", "/")]
        assert len(content) == descriptor["size"]
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
        return content

    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(files["index.json"])["manifests"]
    names = [one["annotations"]["io.containerd.image.name"] for one in index]
    assert names == ["example.net/pause:1", "example.net/pause:2", "busybox:1"]
    for one in index:
        manifest = json.loads(blob(one))
        config = json.loads(blob(manifest["config"]))
        plain = [gzip.decompress(blob(layer)) for layer in manifest["layers"]]
        assert config["rootfs"]["diff_ids"] == [
            f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in plain
        ]
    assert config["config"]["Cmd"] == ["sh"]
    with tarfile.open(fileobj=io.BytesIO(plain[0])) as tar:
        assert [(info.name, info.linkname) for info in tar] == [("bin/sh", "busybox")]


def test_the_same_content_gives_the_same_bytes(images: ModuleType, tmp_path: Path) -> None:
    first, second = (archive(images, tmp_path / name).read_bytes() for name in "ab")
    assert first == second
