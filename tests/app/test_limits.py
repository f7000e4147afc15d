"""How often a tenant may ask, and an address try keys."""

import re
from collections.abc import Callable

import httpx
import pytest
from pydantic import ValidationError

from app.settings import AppSettings
from tests.app.conftest import RATE

Send = Callable[..., httpx.Response]


def test_a_refusal_says_when_to_come_back(key_for: Callable[..., str], send: Send) -> None:
    """Two keys of a tenant share its limit; another tenant has its own."""
    tokens = [key_for("hasty"), key_for("hasty")]
    answers = [send("/v1/jobs", tokens[index % 2]) for index in range(2 * RATE + 20)]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert answers.index(refused) == RATE
    assert refused.json()["code"] == "rate_limited"
    assert "hasty" in refused.json()["detail"]
    assert refused.headers["RateLimit-Policy"] == f'"requests";q={RATE};w=60'
    match = re.fullmatch(r'"requests";r=0;t=(\d+)', refused.headers["RateLimit"])
    assert match
    assert match[1] == refused.headers["Retry-After"]
    assert 1 <= int(match[1]) <= 60
    assert send("/v1/jobs", key_for("patient")).status_code == 200
    assert send("/healthz").status_code == 200


def test_requests_that_lack_a_scope_count(key_for: Callable[..., str], send: Send) -> None:
    token = key_for("scopeless", ("write",))
    codes = [send("/v1/jobs", token).json()["code"] for _ in range(RATE + 1)]
    assert codes == ["scope_missing"] * RATE + ["rate_limited"]


def test_an_address_that_guesses_is_held_off_and_no_other(key_for: Callable[..., str], send: Send) -> None:
    guess = f"known_{'0' * 12}_{'A' * 51}"
    answers = [send("/v1/jobs", guess, address="192.0.2.66") for _ in range(27)]
    assert [answer.status_code for answer in answers] == [401] * 25 + [429] * 2
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert send("/v1/jobs", guess, address="192.0.2.67").status_code == 401
    assert send("/v1/jobs", key_for("honest"), address="192.0.2.66").status_code == 200


@pytest.mark.parametrize("name", ["rate_limit", "key_failure_limit"])
def test_a_limit_that_is_none_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        AppSettings.model_validate({name: "often"})


def test_guessing_cannot_be_left_unlimited() -> None:
    assert AppSettings(rate_limit="").rate_limit == ""
    with pytest.raises(ValidationError, match="key_failure_limit"):
        AppSettings(key_failure_limit="")
