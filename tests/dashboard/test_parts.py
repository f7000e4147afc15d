"""What pages are made of: figures as they are written, intervals as they are drawn, fields as the API takes them."""

import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from app.dashboard.fields import data_fields, sections
from app.dashboard.intervals import WIDTH, intervals
from app.dashboard.pages import _templates
from app.dashboard.shown import duration, points, size, when
from app.jobs.schemas import EnhanceRequest

NEEDED = {"output/hub": {"repo_id": "me/better"}, "webhook": {"url": "https://example.com/hook"}}
INPUTS = {"model": {"hub": {"repo_id": "a/b"}}, "dataset": {"hub": {"repo_id": "a/d"}}}


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.42, "0.4 s"), (12.4, "12 s"), (59.6, "1 min 0 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_times_and_points() -> None:
    assert when("2026-11-24T10:00:01.250Z") == (
        '<time datetime="2026-11-24T10:00:01.250Z">2026-11-24 10:00:01 UTC</time>'
    )
    assert "<script>" not in str(when("<script>"))
    assert points({"mean": 0.008, "low": -0.0031, "high": 0.0129}) == "+0.80 [-0.31, +1.29]"


def gain(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"gain": {"mean": mean, "low": low, "high": high, "n": 3}}


def test_intervals_share_an_axis_that_has_zero_in_it() -> None:
    bars = intervals({"unchanged": {"gain": None}, "x2": gain(2.0, 1.0, 3.0), "x4": gain(-0.5, -1.0, 0.0)})
    assert list(bars) == ["x2", "x4"]
    up, down = bars["x2"], bars["x4"]
    assert (up.proven, up.harmed) == (True, False)
    assert (down.proven, down.harmed) == (False, False)  # touches zero
    assert up.zero == down.zero == down.high
    assert 0 < down.low < down.mean < down.zero < up.low < up.mean < up.high < WIDTH
    scale = (up.high - down.low) / 4.0
    assert up.low - up.zero == pytest.approx(scale, abs=0.2)


@pytest.mark.parametrize("transfer", [{"x2": gain(0.0, 0.0, 0.0)}, {"x2": gain(0.1, float("-inf"), float("inf"))}])
def test_intervals_that_have_no_width_or_no_end(transfer: dict[str, Any]) -> None:
    (bar,) = intervals(transfer).values()
    assert 0 <= bar.low <= bar.mean <= bar.high <= WIDTH


def test_every_default_of_the_form_is_the_apis() -> None:
    """Each field alone, set to what its placeholder says, is a request that the API takes for the same as without."""
    fields = [field for section in sections() for field in section.fields]
    assert len(fields) > 20
    for field in [*fields, *data_fields("/dataset")]:
        if field.default is None:
            continue
        request: dict[str, Any] = {**INPUTS}
        *path, last = field.name.split("/")[1:]
        place = request
        for part in path:
            place = place.setdefault(part, {})
        place[last] = field.default
        needed = NEEDED.get("/".join(path), {})
        place.update(needed)
        taken = EnhanceRequest.model_validate(request)
        if not needed:
            assert taken.model_dump() == EnhanceRequest.model_validate(INPUTS).model_dump(), field.name


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def pointers(model: type[BaseModel], at: str = "") -> Iterator[str]:
    """Of everything that a request may set; of a list of inputs, of its first."""
    for name, info in model.model_fields.items():
        inner = list(models_in(info.annotation))
        place = f"{at}/{name}/0" if "tuple" in str(info.annotation) and inner else f"{at}/{name}"
        if inner:
            yield from pointers(inner[0], place)
        else:
            yield place


def test_the_form_has_every_field_of_a_request() -> None:
    page = _templates.get_template("new.html").render(
        path="/jobs/new", access="open", tenant=None, sections=sections(), data_fields=data_fields
    )
    shown = {name for name in re.findall(r'data-field="([^"]+)"', page) if not re.match("/trajectory/[1-4]/", name)}
    assert shown == set(pointers(EnhanceRequest)) - {"/forgetting/states"}  # it can be five alone
