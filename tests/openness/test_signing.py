"""A signature made offline with a key is of this folder and key, or the difference is said."""

import subprocess
import sys

import pytest

from moxin_lab import cli
from moxin_lab.lab.artifacts import LabError
from moxin_lab.openness import signing


def key_pair(folder, name):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture
def report(tmp_path):
    folder = tmp_path / "reports" / "tiny"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("<h1>report</h1>")
    (folder / "manifest.json").write_text("{}")
    return folder


def test_a_signature_holds_offline_until_a_bit_changes(report, tmp_path, no_network):
    private, public = key_pair(tmp_path, "a")
    signature = signing.sign(report, private)
    assert signature == report.parent / "tiny.sig"
    signing.check(report, signature, public)
    (report / "index.html").write_text("<h1>repoRt</h1>")
    with pytest.raises(LabError, match=r"index\.html"):
        signing.check(report, signature, public)


@pytest.mark.parametrize("change", ["another key", "a file more", "a file less", "no signature"])
def test_what_is_not_of_this_key_or_folder_is_refused(report, tmp_path, change):
    private, public = key_pair(tmp_path, "a")
    signature = signing.sign(report, private)
    if change == "another key":
        public = key_pair(tmp_path, "b")[1]
    elif change == "a file more":
        (report / "more.html").write_text("")
    elif change == "a file less":
        (report / "index.html").unlink()
    else:
        signature.write_text("{}")
    with pytest.raises(LabError, match=r"tiny\.sig is not of"):
        signing.check(report, signature, public)


def test_working_state_of_an_editor_is_not_signed(report, tmp_path):
    private, public = key_pair(tmp_path, "a")
    signature = signing.sign(report, private)
    (report / "index.html~").write_text("an editor's copy")
    signing.check(report, signature, public)


def test_a_folder_without_a_manifest_a_missing_key_and_a_place_inside_are_refused(report, tmp_path):
    private, _ = key_pair(tmp_path, "a")
    with pytest.raises(LabError, match="does not exist"):
        signing.sign(report, tmp_path / "none.pem")
    with pytest.raises(LabError, match="cannot be signed"):
        signing.sign(report, report / "index.html")
    with pytest.raises(LabError, match="lies in the folder"):
        signing.sign(report, private, report / "x.sig")
    (report / "manifest.json").unlink()
    with pytest.raises(LabError, match=r"no manifest\.json"):
        signing.sign(report, private)


def test_without_the_extra_the_error_names_it(report, tmp_path, monkeypatch):
    private, _ = key_pair(tmp_path, "a")
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(LabError, match=r"moxin-lab\[signing\]"):
        signing.sign(report, private)


def test_the_signature_is_one_that_openssf_s_own_command_accepts(report, tmp_path):
    private, public = key_pair(tmp_path, "a")
    assert cli.main(["sign", str(report), "--key", str(private)]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", "verify", "key", str(report)]
        + ["--signature", str(report.parent / "tiny.sig"), "--public_key", str(public)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
