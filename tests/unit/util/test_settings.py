"""Configuration files: what is read from them, which one wins, and what is wrong in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from torpor import cli
from torpor.errors import SettingError
from torpor.store import Store, default_path
from torpor.util import settings
from torpor.util.settings import Value
from torpor_slurm.allocation import Allocation

Written = Callable[[str, str], str]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Write the user's or the host's file; returns its path. No variable is set."""
    for setting in settings.SETTINGS.values():
        monkeypatch.delenv(setting.variable or "TORPOR_NOTHING", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(settings, "SYSTEM_FILE", str(tmp_path / "etc/torpor/config.toml"))
    settings.read.cache_clear()
    paths = {"user": tmp_path / "home/torpor/config.toml", "host": tmp_path / "etc/torpor/config.toml"}

    def write(whose: str, text: str) -> str:
        paths[whose].parent.mkdir(parents=True, exist_ok=True)
        paths[whose].write_text(text)
        settings.read.cache_clear()
        return str(paths[whose])

    return write


IN_ANOTHERS_HOME = """
import os
from torpor.errors import SettingError
from torpor.util import settings
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for name in ("closed/config.toml", "open/config.toml"):
    try:
        print(settings.read(name))
    except SettingError as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_home_that_is_not_ones_own_has_no_settings(tmp_path: Path) -> None:
    """As after `su` without `-`; a file that is seen and may not be read is an error."""
    tmp_path.chmod(0o755)
    for name, mode in (("closed", 0o700), ("open", 0o755)):
        (tmp_path / name).mkdir(mode=mode)
        (tmp_path / name / "config.toml").touch(0o600)
    words = [sys.executable, "-c", IN_ANOTHERS_HOME]
    ran = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ran.stdout == "{}\nopen/config.toml cannot be read: Permission denied\n"


def test_without_files_there_are_defaults(written: Written, tmp_path: Path) -> None:
    assert settings.get("small-files") == Value(4 << 20, "default")
    assert settings.get("store") == Value(None, "default")
    assert default_path() == str(tmp_path / "data/torpor")


def test_which_one_wins(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    host = written("host", 'store = "/host"\nsmall-files = "1K"\n[run]\nkeep-last = 7')
    assert settings.get("store") == Value("/host", host)
    user = written("user", 'store = "/user"')
    assert settings.get("store") == Value("/user", user)
    assert settings.get("small-files") == Value(1024, host)
    assert settings.get("run.keep-last") == Value(7, host)
    assert Store().path == default_path() == "/user"
    monkeypatch.setenv("TORPOR_STORE", "/variable")
    monkeypatch.setenv("TORPOR_SMALL_FILES", "")
    assert settings.get("store") == Value("/variable", "$TORPOR_STORE")
    assert settings.get("small-files").source == host, "an empty variable says nothing"


def test_values(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    written("user", 'store = "~/torpor"\nsmall-files = 4096\nprove = true\n[prune]\nkeep-within = "2d"\nkeep-daily = 0')
    assert settings.get("store").value == os.path.expanduser("~/torpor")
    monkeypatch.setenv("USER", "ann")
    held = [settings.get(name).value for name in ("small-files", "prove", "prune.keep-within", "prune.keep-daily")]
    assert held == [4096, True, 172800.0, 0]
    written("user", 'store = "/scratch/$USER/torpor"')
    assert settings.get("store").value == "/scratch/ann/torpor"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(("small-files", 4 << 20, "4M"), ("limit", 0, "0"), ("limit", 1000, "1000"), ("limit", 3 << 30, "3G")),
        *(
            ("prune.keep-within", 90000.0, "1d1h"),
            ("prove", False, "false"),
            ("metrics", None, "-"),
            ("store", "/s", "/s"),
        ),
    ],
)
def test_a_value_is_shown_as_a_file_has_it(name: str, value: object, words: str) -> None:
    assert settings.written(name, value) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("store = 5", "store is 5: it must be the path of a directory"),
        ('store = "here"', "store is 'here': it must be the path"),
        ('store = ""', "store is ''"),
        ('store = "/a/$TORPOR_NOT_SET/b"', "names an environment variable that is not set"),
        ('small-files = "much"', "small-files is 'much': it must be a size"),
        ("small-files = true", "small-files is True"),
        ("small-files = -1", "small-files is -1"),
        ('prove = "yes"', "prove is 'yes': it must be true or false"),
        ("[run]\nkeep-last = 0", "run.keep-last is 0: it must be a whole number, 1 or more"),
        ("[run]\nkeep-last = true", "run.keep-last is True"),
        ("[prune]\nkeep-within = 7", "prune.keep-within is 7: it must be a time span"),
        ('[prune]\nkeep-within = "soon"', "'soon' is not a time span"),
        ("[prune]\nkeep-dayly = 7", "there is no setting 'prune.keep-dayly'; did you mean prune.keep-daily?"),
        ("run = 5", "there is no setting 'run'"),
        ("[store]\npath = 1", "store is {'path': 1}"),
        ("xyz = 1", "there is no setting 'xyz'; `torpor config` lists all"),
        ("store = ", "is not valid TOML: Invalid value (at end of document)"),
        ("a = 1\nb = [", "is not valid TOML: "),
    ],
)
def test_what_is_wrong_is_named(written: Written, text: str, words: str) -> None:
    """Also where another setting is asked for: a file is right as a whole, or an error."""
    file = written("user", text)
    with pytest.raises(SettingError) as told:
        settings.get("small-files")
    assert str(told.value).startswith(file)
    assert words in str(told.value)
    assert told.value.exit_code == 2


def test_a_file_that_is_no_text_or_cannot_be_read(written: Written, tmp_path: Path) -> None:
    Path(written("user", "")).write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match="is not valid TOML"):
        settings.get("store")
    path = Path(written("user", ""))
    path.write_bytes(b"#" * (settings.MAX_FILE + 1))
    with pytest.raises(SettingError, match="too large"):
        settings.get("store")
    path.unlink()
    path.mkdir()
    with pytest.raises(SettingError, match="cannot be read: Is a directory"):
        settings.get("store")


def test_a_mistake_that_comes_later_is_not_read(written: Written, tmp_path: Path) -> None:
    """What runs already is saved as before."""
    path = Path(written("user", 'small-files = "1K"'))
    assert settings.get("small-files").value == 1024
    path.write_text("nonsense")
    assert settings.get("small-files").value == 1024


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def test_torpor_config(written: Written, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = written("user", "[prune]\nkeep-last = 3")
    code, out, err = run(capsys, "config")
    assert (code, err) == (0, "")
    rows = {words[0]: words[1:3] for words in map(str.split, out.splitlines()) if len(words) > 2}
    assert rows["store"] == [str(tmp_path / "data/torpor"), "default"]
    assert rows["prune.keep-last"] == ["3", file]
    assert rows["prune.keep-daily"] == ["-", "default"]
    told = json.loads(run(capsys, "config", "--json")[1])
    assert told["settings"]["prune.keep-last"] == {"value": 3, "from": file}
    assert told["files"] == [file, settings.SYSTEM_FILE]
    assert set(told["settings"]) == set(settings.SETTINGS)


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_slurm_job_that_goes_on_does_without_a_file_that_is_wrong(
    written: Written, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, restarts: int
) -> None:
    """A mistake in it, made meanwhile, costs no work; at its first run the job fails at once."""
    written("user", "stor = 1")
    here = SimpleNamespace(job="12", cluster="c", restarts=restarts)
    monkeypatch.setattr(Allocation, "here", lambda: here)
    monkeypatch.setattr("torpor_slurm.allocation.is_supervised", lambda *_: False)
    monkeypatch.setattr("torpor_slurm.supervisor.supervise", lambda *_: settings.get("small-files").value >> 20)
    monkeypatch.setattr(settings, "_left_out", set())
    code, _, told = run(capsys, "run", "true")
    assert code == (4 if restarts else 2)
    assert "there is no setting 'stor'; did you mean store?" in told


def test_commands_go_by_it(written: Written, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = Store(tmp_path / "named")
    for _ in range(3):
        with store.writer("tree") as writer:
            writer.publish(b"", "a test")
    written("user", f'store = "{store.path}"\n[prune]\nkeep-last = 2')
    assert run(capsys, "ls", "-q")[1].split() == store.ids()
    assert run(capsys, "prune")[0] == 0
    assert len(store.ids()) == 2
    assert run(capsys, "prune", "--keep-last", "1")[0] == 0
    assert len(store.ids()) == 1
    written("user", 'store = "/nowhere/at/all"')
    assert run(capsys, "ls")[0] == 11, "it was named, and is not there"
    written("user", "stor = 1")
    for words in (["ls"], ["run", "true"], ["config"], ["checkpoint", "2000000000"]):
        code, _, told = run(capsys, *words)
        assert (code, "there is no setting 'stor'; did you mean store?" in told) == (2, True)
