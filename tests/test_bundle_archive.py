import hashlib
import io
import json
import os
import shutil
import stat
import struct
import time
import zipfile

import pytest
from fabricated_bundle import change_json, make_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haemex.bundle import load_bundle
from haemex.bundle_archive import LARGEST_TEXT, MOST_FILES, check_bundle, export_bundle, import_bundle
from haemex.errors import InputError

FILES = ["fold0.safetensors", "fold1.safetensors", "fold2.safetensors", "model.json", "model.safetensors"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = make_bundle(tmp_path_factory.mktemp("made"))
    return folder, export_bundle(folder, folder.parent / "model.zip")


@pytest.fixture
def bundle(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "sender" / "model")


@pytest.fixture
def archive(made, tmp_path):
    return shutil.copy(made[0].parent / "model.zip", tmp_path / "model.zip")


def contents(archive):
    """Names and contents of an archive, in its order."""
    with zipfile.ZipFile(archive) as file:
        return [(member.filename, file.read(member)) for member in file.infolist()]


def pack(archive, members, edit=None, **options):
    """Write an archive as anybody can; `edit(entry)` changes what it says of a file."""
    with zipfile.ZipFile(archive, "w", **options) as file:
        for name, content in members:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = options.get("compression", zipfile.ZIP_STORED)
            if edit:
                edit(entry)
            file.writestr(entry, content)


def everything(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.fixture
def refused(archive, tmp_path):
    """Check that the archive is refused by both, and that nothing is left behind."""

    def refused(match):
        before = everything(tmp_path)
        for use in (lambda: check_bundle(archive), lambda: import_bundle(archive, tmp_path / "new")):
            with pytest.raises(InputError, match=match) as error:
                use()
            assert error.value.file == str(archive)
        assert everything(tmp_path) == before

    return refused


def test_a_bundle_travels_as_one_file(made, bundle, archive, tmp_path):
    checked = import_bundle(archive, tmp_path / "receiver")
    assert sorted(path.name for path in (tmp_path / "receiver").iterdir()) == FILES
    for name in FILES:
        assert (tmp_path / "receiver" / name).read_bytes() == (bundle / name).read_bytes()
        content = (bundle / name).read_bytes()
        assert checked["files"][name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert checked["description"] == json.loads((bundle / "model.json").read_text())
    assert len(load_bundle(tmp_path / "receiver").ensemble) == 3
    # One digest, wherever the bundle stands.
    assert checked == check_bundle(archive) == check_bundle(bundle) == check_bundle(tmp_path / "receiver")
    assert checked["digest"] == made[1]
    assert stat.S_IMODE((tmp_path / "receiver").stat().st_mode) == stat.S_IMODE((bundle / "..").stat().st_mode)
    assert everything(tmp_path).count((tmp_path / "receiver").relative_to(tmp_path)) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_same_bundle_gives_the_same_bytes(bundle, archive, tmp_path):
    (bundle / "notes.txt").write_text("stays behind")
    for path in bundle.iterdir():
        os.utime(path, (time.time() - 10**7,) * 2)
        path.chmod(0o600)
    again = tmp_path / "again.zip"
    export_bundle(bundle, again)
    assert again.read_bytes() == archive.read_bytes()
    members = contents(again)
    assert [name for name, _ in members] == ["digests.json", *FILES]
    assert hashlib.sha256(members[0][1]).hexdigest() == check_bundle(again)["digest"]
    assert again.stat().st_size < sum(len(content) for _, content in members) + 150 * len(members)


def test_another_model_has_another_digest(made, bundle):
    change_json(bundle, operating_point={"threshold": 0.41, "rule": "youden"})
    assert check_bundle(bundle)["digest"] != made[1]


def test_comparators_travel_along_and_have_to_be_the_models_own(bundle, tmp_path):
    model = {"intercept": -1.0, "coefficient": 0.1, "threshold": 0.3, "rule": "youden", "patients": 3}
    content = {
        "format": 1,
        "baselines": {"volume": {**model, "separated": False, "missing": 0}},
        "reference": {
            "patients": 3,
            "expansions": 1,
            "definition": {"absolute_ml": 6.0, "relative_percent": 33.0, "operator": ">"},
            "cuts": {"baseline_ml": [8.0, 20.0], "age_years": 61.0},
            "scanners": {"A": 3},
            "characteristics": [],
            "pixel_digests": ["0" * 64],
        },
    }
    path = bundle / "comparators.json"
    path.write_text(json.dumps(content))
    export_bundle(bundle, tmp_path / "model.zip")
    checked = import_bundle(tmp_path / "model.zip", tmp_path / "new")
    assert sorted(checked["files"]) == ["comparators.json", *FILES]
    assert (tmp_path / "new" / "comparators.json").read_bytes() == path.read_bytes()
    content["reference"]["patients"] = 4
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"comparators\.json: it belongs to another model"):
        export_bundle(bundle, tmp_path / "other.zip")
    members = {**dict(contents(tmp_path / "model.zip")), "comparators.json": path.read_bytes()}
    listed = json.loads(members["digests.json"])
    listed["files"]["comparators.json"] = {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    members["digests.json"] = json.dumps(listed).encode()
    pack(tmp_path / "model.zip", members.items())
    with pytest.raises(InputError, match=r"comparators\.json: it belongs to another model"):
        check_bundle(tmp_path / "model.zip")


def test_an_empty_folder_is_filled_and_a_full_one_is_not(archive, tmp_path):
    (tmp_path / "empty").mkdir()
    import_bundle(archive, tmp_path / "empty")
    before = everything(tmp_path)
    with pytest.raises(InputError, match="something stands here already"):
        import_bundle(archive, tmp_path / "empty")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(InputError, match="something stands here already"):
            import_bundle(archive, tmp_path / name)
    with pytest.raises(InputError, match="cannot be written"):
        import_bundle(archive, tmp_path / "missing" / "new")
    assert set(everything(tmp_path)) - set(before) == {path.relative_to(tmp_path) for path in tmp_path.glob("[lf]i*")}


def test_a_damaged_bundle_is_not_exported(bundle, tmp_path):
    content = (bundle / "fold1.safetensors").read_bytes()
    (bundle / "fold1.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"fold1\.safetensors: the weights are not those"):
        export_bundle(bundle, tmp_path / "new.zip")
    (bundle / "fold1.safetensors").unlink()
    with pytest.raises(InputError, match=r"fold1\.safetensors: no readable weights"):
        check_bundle(bundle)
    assert not (tmp_path / "new.zip").exists()
    (bundle / "fold1.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="the archive cannot be written"):
        export_bundle(bundle, tmp_path / "missing" / "new.zip")


@pytest.mark.parametrize(
    "name",
    [
        "../fold3.safetensors", "/tmp/fold3.safetensors", "C:\\fold3.safetensors", "..\\fold3.safetensors",
        "inner/fold3.safetensors", "inner/", "./fold3.safetensors", "fold3.safetensors\0.txt", "model.zip", "notes.txt",
        "FOLD3.safetensors", "fold٣.safetensors", "fold3.safetensors\n", "fold1234.safetensors", ".", "..", "~", "con",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_or_are_not_a_bundles(archive, refused, name):
    pack(archive, [*contents(archive), ("fold9.safetensors", b"x")])
    encoded = name.encode()
    content = archive.read_bytes()
    if len(encoded) <= 40:  # the very bytes of the name, which Python's writer would tidy
        pack(archive, [*contents(archive)[:-1], ("n" * len(encoded), b"x")])
        content = archive.read_bytes().replace(b"n" * len(encoded), encoded)
        flags = content.rindex(b"PK\1\2") + 8
        content = content[:flags] + struct.pack("<H", 0x800) + content[flags + 2 :]
        archive.write_bytes(content)
    else:
        pack(archive, [*contents(archive)[:-1], (name, b"x")])
    refused("which is no file of a model bundle|is damaged")


def test_links_and_devices_are_refused(archive, refused):
    members = contents(archive)
    for kind in (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO):

        def edit(entry, kind=kind):
            entry.external_attr = (kind | 0o777) << 16 if entry.filename == "fold1.safetensors" else 0

        pack(archive, [(n, b"/etc/passwd" if n == "fold1.safetensors" else c) for n, c in members], edit)
        refused("fold1.safetensors is no plain file")


def test_compressed_and_swelling_archives_are_refused(archive, refused):
    members = contents(archive)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        pack(archive, members, compression=method)
        refused("is compressed")
    bomb = bytes(2 * 10**7)
    pack(archive, [(n, bomb if n == "model.safetensors" else c) for n, c in members], compression=zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 10**6
    refused("is compressed")


def patch(archive, name, offset, layout, *values):
    """Change the list of contents: what it says of a file, beginning at an offset of its entry."""
    content = bytearray(archive.read_bytes())
    entry = content.rindex(name.encode()) - 46
    assert content[entry : entry + 4] == b"PK\1\2"
    struct.pack_into(layout, content, entry + offset, *values)
    archive.write_bytes(content)


def test_stated_sizes_are_not_believed(archive, refused):
    whole = archive.read_bytes()
    size = len(whole)
    patch(archive, "model.safetensors", 20, "<2L", 2**30 + 1, 2**30 + 1)
    refused(f"model.safetensors has {2**30 + 1} bytes")
    archive.write_bytes(whole)
    patch(archive, "model.safetensors", 20, "<2L", 2**29, 2**29)
    refused("states more bytes than it has")
    archive.write_bytes(whole)
    patch(archive, "model.safetensors", 24, "<L", size)
    refused("is compressed")
    archive.write_bytes(whole)
    patch(archive, "model.safetensors", 10, "<H", zipfile.ZIP_DEFLATED)
    refused("is compressed")
    archive.write_bytes(whole)
    patch(archive, "model.json", 20, "<2L", LARGEST_TEXT + 1, LARGEST_TEXT + 1)
    refused("model.json has")
    archive.write_bytes(whole)
    patch(archive, "model.json", 20, "<2L", 10, 10)
    refused("damaged")
    archive.write_bytes(whole)
    patch(archive, "model.safetensors", 42, "<L", 2**31)  # where the file begins
    refused("damaged")
    archive.write_bytes(whole)
    patch(archive, "model.safetensors", 8, "<H", 1)
    refused("encrypted")


def test_too_many_files_are_refused_before_their_list_is_read(archive, refused):
    pack(archive, [(f"fold{number}.safetensors", b"") for number in range(MOST_FILES + 1)])
    refused(f"lists {MOST_FILES + 1} files")
    pack(archive, [("x" * 60000, b"")])
    refused("lists 1 files in 60")


def test_a_file_twice_or_another_file_than_listed(archive, refused):
    members = contents(archive)
    with pytest.warns(UserWarning, match="Duplicate"):
        pack(archive, [*members, members[-1]])
    refused("twice")
    pack(archive, members[1:])
    refused("no digests.json")
    pack(archive, members[:-1])
    refused("not hold just the files that its digests.json names")
    pack(archive, [*members, ("fold9.safetensors", members[1][1])])
    refused("not hold just the files that its digests.json names")


def test_wrong_digests_are_refused(archive, refused):
    members = dict(contents(archive))
    other = members["fold0.safetensors"]
    pack(archive, {**members, "fold1.safetensors": other}.items())
    refused("fold1.safetensors is not the file that digests.json was written for")
    listed = json.loads(members["digests.json"])

    def relist(content, match):
        pack(archive, {**members, "digests.json": json.dumps(content).encode()}.items())
        refused(match)

    # A forger fits digests.json to another fold model: the description still knows better.
    forged = json.loads(members["digests.json"])
    forged["files"]["fold1.safetensors"] = forged["files"]["fold0.safetensors"]
    text = (json.dumps(forged, indent=1, sort_keys=True) + "\n").encode()
    pack(archive, {**members, "fold1.safetensors": other, "digests.json": text}.items())
    refused("fold1.safetensors: the weights are not those that model.json was written for")
    relist({**listed, "format": 2}, "format is 2, this haemex reads 1")
    relist([], "digests.json cannot be read")
    relist({**listed, "files": []}, "digests.json cannot be read")
    relist({**listed, "files": {**listed["files"], "../x": {}}}, "digests.json names '../x'")
    relist({**listed, "files": {**listed["files"], "model.json": 7}}, "does not state size and digest of model.json")
    listed["files"]["model.json"]["bytes"] += 1
    relist(listed, "model.json is not the file")
    pack(archive, {**members, "digests.json": b"[" * 10**6}.items())
    refused("digests.json cannot be read")
    pack(archive, {**members, "digests.json": b"\xff\xfe{}"}.items())
    refused("digests.json cannot be read")


def test_a_file_that_the_description_does_not_name_is_refused(bundle, archive, refused):
    members = dict(contents(archive))
    members["fold7.safetensors"] = members["fold0.safetensors"]
    listed = json.loads(members["digests.json"])
    listed["files"]["fold7.safetensors"] = listed["files"]["fold0.safetensors"]
    members["digests.json"] = (json.dumps(listed, indent=1, sort_keys=True) + "\n").encode()
    pack(archive, members.items())
    refused("just the files that its description names")


def test_archives_in_archives_and_other_files(archive, refused, tmp_path):
    whole = archive.read_bytes()
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("model.zip", whole)
    archive.write_bytes(inner.getvalue())
    refused("holds 'model.zip'")
    for content in (
        b"",
        b"PK",
        b"no archive at all",
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"\0",
        b"#!" + whole,
    ):
        archive.write_bytes(content)
        refused("no archive of a model bundle|before or after|damaged")
    archive.unlink()
    refused("no such file")
    os.mkfifo(archive)  # opening one would wait for ever
    refused("no such file")


def test_a_disk_that_is_full_is_not_taken_for_a_damaged_archive(archive, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(InputError, match="cannot be read or unpacked"):
            import_bundle(archive, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert everything(tmp_path) == [archive.relative_to(tmp_path)]


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bytes_change_it_is_refused_or_harmless(made, tmp_path, data):
    whole = bytearray((made[0].parent / "model.zip").read_bytes())
    # The headers are a small part of the file, and the part that matters.
    heads = [at for sign in (b"PK\3\4", b"PK\1\2", b"PK\5\6") for at in _places(whole, sign)]
    for _ in range(data.draw(st.integers(1, 3))):
        near = data.draw(st.sampled_from(heads)) + data.draw(st.integers(0, 60))
        at = data.draw(st.one_of(st.just(min(near, len(whole) - 1)), st.integers(0, len(whole) - 1)))
        whole[at] = data.draw(st.integers(0, 255))
    archive, new = tmp_path / "changed.zip", tmp_path / "new"
    archive.write_bytes(whole)
    try:
        assert import_bundle(archive, new)["digest"] == made[1]
        shutil.rmtree(new)
    except InputError:
        pass
    assert everything(tmp_path) == [archive.relative_to(tmp_path)]


def _places(content, sign):
    at = content.find(sign)
    while at >= 0:
        yield at
        at = content.find(sign, at + 1)
