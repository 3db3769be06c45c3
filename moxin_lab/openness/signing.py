"""An optional signature over a report's folder, with OpenSSF's model-signing and a key, offline.

    sign(folder, private_key)               # writes FOLDER.sig beside the folder
    check(folder, signature, public_key)    # LabError: what differs

The signature is a Sigstore bundle over the SHA-256 of every file of the folder, manifest.json among
them; since the manifest binds the runs, data cards and notebooks, it speaks for all of them.
Needs the extra: pip install 'moxin-lab[signing]'. A key pair: openssl ecparam -name prime256v1
-genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out public.pem

Guarantees: no service and no network; the folder is not changed.
Out of scope: who holds the key; keyless signing, which needs a network.
"""

from pathlib import Path
from typing import Any

from moxin_lab.lab.artifacts import LabError, is_working_state

EXTRA = "install the extra: pip install 'moxin-lab[signing]'"


def signature_path(folder: Path) -> Path:
    """Where `sign` writes: beside the folder, so that the folder stays as its manifest says."""
    return folder.parent / f"{folder.name}.sig"


def sign(folder: Path, private_key: Path, signature: Path | None = None) -> Path:
    """Sign a report's folder with a PEM key (elliptic curve); path of the signature.

    Raises LabError if the extra is not installed, the folder has no manifest.json, or the key
    cannot be used.
    """
    folder = folder.resolve()
    _check_folder(folder)
    if not private_key.is_file():
        raise LabError(f"{private_key} does not exist: name a private key in PEM form")
    target = signature or signature_path(folder)
    if folder in target.resolve().parents:
        raise LabError(f"{target} lies in the folder that it signs; name another place")
    signing = _library("signing")
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
        config.set_hashing_config(_hashing(folder)).sign(folder, target)
    except (OSError, TypeError, ValueError) as error:
        raise LabError(f"{folder} cannot be signed with {private_key}: {error}") from error
    return target


def check(folder: Path, signature: Path, public_key: Path) -> None:
    """Check a signature. Raises LabError with what differs, or if it cannot be read."""
    folder = folder.resolve()
    _check_folder(folder)
    for path in (signature, public_key):
        if not path.is_file():
            raise LabError(f"{path} does not exist")
    verifying = _library("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(_hashing(folder)).verify(folder, signature)
    except Exception as error:
        raise LabError(f"the signature {signature} is not of {folder}: {error}") from error


def _check_folder(folder: Path) -> None:
    if not (folder / "manifest.json").is_file():
        raise LabError(f"{folder} has no manifest.json; sign a report's folder after its run")


def _library(name: str) -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise LabError(f"signatures need model-signing ({error}); {EXTRA}") from error
    return getattr(model_signing, name)


def _hashing(folder: Path) -> Any:
    """What an editor or a file manager leaves is working state, here as in a manifest."""
    left = [path for path in folder.rglob("*") if is_working_state(path.name)]
    hashing = _library("hashing").Config()
    return hashing.set_ignored_paths(paths=left, ignore_git_paths=True)
