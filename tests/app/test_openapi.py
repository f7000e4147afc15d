"""The API describes itself: every route with an example, a summary and its errors."""

import re
from typing import Any

import httpx
import pytest

from known_core.stack import Stack


@pytest.fixture(scope="module")
def schema(stack: Stack) -> dict[str, Any]:
    described: dict[str, Any] = httpx.get(f"{stack.url}/openapi.json").json()
    return described


def test_every_route_has_an_example_of_its_answer(schema: dict[str, Any]) -> None:
    lacking = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            status, success = next(pair for pair in operation["responses"].items() if pair[0].startswith("2"))
            if (
                status != "204"
                and method != "head"
                and not all("example" in content for content in success["content"].values())
            ):
                lacking.append(f"{method} {path}: answer")
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if "example" not in content and "examples" not in content:
                    lacking.append(f"{method} {path}: body")
            if not operation["summary"] or not operation["description"]:
                lacking.append(f"{method} {path}: words")
    assert lacking == []


def test_examples_are_valid(schema: dict[str, Any]) -> None:
    from app.artifacts.schemas import ARTIFACT_EXAMPLE, ArtifactList
    from app.events.schemas import EVENT_EXAMPLE, EventPage
    from app.jobs.schemas import ENHANCE_EXAMPLES, JOB_EXAMPLE, EnhanceRequest, JobView
    from app.uploads.schemas import UPLOAD_EXAMPLE, UploadView
    from app.webhooks.schemas import DELIVERY_EXAMPLE, SECRET_EXAMPLE, DeliveryView, SecretView

    for example in ENHANCE_EXAMPLES.values():
        EnhanceRequest.model_validate(example["value"])
    JobView.model_validate(JOB_EXAMPLE)
    EventPage.model_validate(EVENT_EXAMPLE)
    ArtifactList.model_validate(ARTIFACT_EXAMPLE)
    UploadView.model_validate(UPLOAD_EXAMPLE)
    DeliveryView.model_validate(DELIVERY_EXAMPLE)
    SecretView.model_validate(SECRET_EXAMPLE)


def test_the_page_that_describes_it_needs_no_internet(stack: Stack) -> None:
    answer = httpx.get(f"{stack.url}/docs")
    assert "https://" not in answer.text
    scripts = re.findall(r'(?:src|href)="(/[^"]+)"', answer.text)
    assert len(scripts) == 3
    assert all(httpx.get(stack.url + path).status_code == 200 for path in scripts)


def test_the_probes_answer(stack: Stack) -> None:
    assert httpx.get(f"{stack.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{stack.url}/readyz").json() == {"status": "ok", "workers": 1, "access": "open"}
