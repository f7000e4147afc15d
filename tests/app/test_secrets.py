"""Tokens of requests: sealed with a key that lies in the data folder or in a setting."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

from app.jobs.secrets import Sealer
from app.jobs.settings import StoreSettings
from known_core.errors import KnownError

TOKEN = "hf_canary"


def sealer(folder: Path, key: str | None = None) -> Sealer:
    return Sealer(StoreSettings(data_dir=folder, secret_key=SecretStr(key) if key else None))


def test_what_is_sealed_opens_for_every_process_of_the_folder(tmp_path: Path) -> None:
    sealed = sealer(tmp_path).seal(TOKEN)
    assert TOKEN not in sealed
    assert sealer(tmp_path).unseal(sealed) == TOKEN
    mode = stat.S_IMODE((tmp_path / "secret.key").stat().st_mode)
    assert mode == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]


def test_processes_that_start_together_share_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        sealers = list(pool.map(lambda _: sealer(tmp_path), range(8)))
    assert {one.unseal(other.seal(TOKEN)) for one in sealers for other in sealers} == {TOKEN}


def test_a_key_of_the_operator_s(tmp_path: Path) -> None:
    key = Fernet.generate_key().decode()
    sealed = sealer(tmp_path / "api", key).seal(TOKEN)
    assert sealer(tmp_path / "worker", key).unseal(sealed) == TOKEN
    assert not (tmp_path / "api").exists()
    with pytest.raises(KnownError, match="secret_key_invalid") as caught:
        sealer(tmp_path / "worker").unseal(sealed)
    assert TOKEN not in str(caught.value)
    with pytest.raises(KnownError, match="secret_key_invalid"):
        sealer(tmp_path, "short")


def test_settings_show_no_token(tmp_path: Path) -> None:
    settings = StoreSettings(data_dir=tmp_path, hub_token=SecretStr(TOKEN))
    access = settings.hub_access(None)
    assert access.secret == TOKEN
    assert settings.hub_access("other").secret == "other"
    assert TOKEN not in f"{settings!r} {access!r} {access.model_dump_json()}"
