from __future__ import annotations

from typing import Literal

import pytest

import torpor
from torpor.util import choices


def test_check() -> None:
    choices.check("then", "kill", Literal["run", "kill"])
    for wrong in ("Kill", "", None, 1, ["run"]):
        with pytest.raises(ValueError, match=r"then=.*: it is one of 'run', 'kill'"):
            choices.check("then", wrong, Literal["run", "kill"])


@pytest.mark.parametrize("argument", ["then", "outside", "tcp"])
def test_a_checkpoint_with_a_wrong_word_touches_nothing(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}='die': it is one of "):
        torpor.checkpoint(2**22, **{argument: "die"})  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["files", "way"])
def test_a_restore_with_a_wrong_word_starts_nothing(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}='any': it is one of "):
        torpor.restore("latest", **{argument: "any"})  # type: ignore[arg-type]
