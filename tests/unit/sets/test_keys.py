"""Keys of sets in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.errors import NotPermitted
from torpor.sets import keys


def test_a_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    keys.write_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    key = keys.read_key(path)
    assert len(key) == keys.KEY
    keys.write_key(path)
    assert keys.read_key(path) != key
    path.chmod(0o640)
    with pytest.raises(NotPermitted, match="others may read it"):
        keys.read_key(path)
    path.chmod(0o600)
    path.write_bytes(key + b"x")
    with pytest.raises(NotPermitted, match="is no key"):
        keys.read_key(path)
    with pytest.raises(NotPermitted, match="the key cannot be read"):
        keys.read_key(tmp_path / "none")
