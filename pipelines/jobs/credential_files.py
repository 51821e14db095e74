"""Files that hold credentials, by name and by content. They are never uploaded with a job."""

from __future__ import annotations

from pathlib import Path

from pathspec import GitIgnoreSpec

from rlad.credentials import token_in

# In any folder, and in lower case. No ignore file can bring them back.
_FOLDERS = (
    ".ssh .aws .azure .gcloud .gsutil .kube .docker .gnupg .oci .kaggle .huggingface .vault .secrets secrets "
    ".password-store .terraform.d .config/gcloud .config/gh .config/rclone .config/huggingface .cache/huggingface .ray"
)
_FILES = (
    ".env .env.* *.env .envrc .netrc _netrc *.netrc .pgpass .my.cnf .mylogin.cnf .npmrc .yarnrc.yml .pypirc "
    ".pip/pip.conf "
    ".git-credentials .dockercfg .dockerconfigjson .boto .s3cfg rclone.conf .htpasswd .vault-token .terraformrc "
    "terraform.tfstate* *.tfvars *.tfvars.json .databrickscfg .snowsql .cargo/credentials .cargo/credentials.toml "
    "id_rsa* id_dsa* id_ecdsa* id_ed25519* *.pem *.key *.p12 *.pfx *.pkcs12 *.jks *.keystore *.kdbx *.ppk *.ovpn "
    "kubeconfig kubeconfig.y*ml kubeconfig-* *.kubeconfig kube.config credentials *-credentials.json "
    "*_credentials.json *_credentials client_secret*.json service-account*.json service_account*.json "
    "serviceaccount*.json gcp-key*.json kaggle.json auth.json token .token token.txt token.json *.token auth_token "
    "*_token.txt api_key api_key.txt *.apikey password password.txt passwords.txt *.passwd .secret *.secret "
    "*-secrets.yaml *-secrets.yml *.secrets"
)
_KINDS = "yaml yml json toml ini cfg csv txt xml db env"
_SETTINGS = [f"{name}.{kind}" for name in ("credentials", "secret", "secrets") for kind in _KINDS.split()]
_NAMES = GitIgnoreSpec.from_lines(
    [
        *(f"**/{folder}/" for folder in _FOLDERS.split()),
        *(f"**/{file}" for file in (*_FILES.split(), *_SETTINGS)),
        *(f"!**/{kept}" for kept in (".env.example", ".env.sample", ".env.template", ".env.dist", "*.pub")),
    ]
)
# A file with a token is text and small; a larger one is data.
_MAX_SEARCHED_BYTES = 256 * 1024


def is_credential_path(path: str, *, is_folder: bool = False) -> bool:
    """Return whether a file or folder looks like a credential by its name.

    Args:
        path: POSIX path relative to the uploaded directory.
        is_folder: Whether it is a folder.
    """
    return bool(_NAMES.match_file(path.lower() + ("/" if is_folder else "")))


def credential_in(path: Path) -> str | None:
    """Return the kind of credential that a small text file holds, for example `private key`; None if none."""
    if path.stat().st_size > _MAX_SEARCHED_BYTES:
        return None
    content = path.read_bytes()
    return None if b"\0" in content else token_in(content.decode(errors="replace"))
