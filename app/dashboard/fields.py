"""The form's fields, read from the models that the API validates with: names, ranges, defaults and words are theirs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from app.jobs.schemas import DatasetInput, EnhanceRequest, EvaluationRequest
from app.webhooks.schemas import WebhookRequest
from known_core.spec import ForgettingSettings, HubTarget, NowcastSettings


@dataclass(frozen=True)
class FormField:
    """One field. ``name`` is the JSON pointer of what it sets; left as it is, it sets nothing."""

    name: str
    label: str
    help: str
    kind: str  # text, number, numbers (by commas), choice, several (choices), flag (or not), maybe (or neither), json
    default: Any = None
    low: float | None = None
    high: float | None = None
    whole: bool = False
    options: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return "f" + self.name.replace("/", "-")


@dataclass(frozen=True)
class Section:
    title: str
    fields: list[FormField]


def sections() -> list[Section]:
    """Every setting of a job, grouped as its request is."""
    return [
        Section("Forgetting", _fields(ForgettingSettings, "/forgetting", without=("states",))),
        Section("Nowcast", _fields(NowcastSettings, "/nowcast")),
        Section("Evaluation", _fields(EvaluationRequest, "/evaluation", without=("downstream",))),
        Section("Result", [
            *_fields(HubTarget, "/output/hub"),
            *_fields(EnhanceRequest.model_fields["output"].annotation, "/output", without=("hub",)),
            *_fields(EnhanceRequest, "", without=set(EnhanceRequest.model_fields) - {"device"}),
            *_fields(EnhanceRequest.model_fields["limits"].annotation, "/limits"),
        ]),
        Section("Webhook and metadata", [
            *_fields(WebhookRequest, "/webhook", of="webhook "),
            *_fields(EnhanceRequest, "", without=set(EnhanceRequest.model_fields) - {"metadata"}),
        ]),
    ]  # fmt: skip


def data_fields(pointer: str) -> list[FormField]:
    """How a data set is read."""
    return _fields(DatasetInput, pointer, without=("upload_id", "hub"))


def _fields(model: Any, pointer: str, without: Iterable[str] = (), of: str = "") -> list[FormField]:
    """The fields of a model and of those within it.

    Args:
        of: what the model is part of, for its labels.
    """
    assert issubclass(model, BaseModel)
    described, found = model.model_json_schema()["properties"], list[FormField]()
    for name, info in model.model_fields.items():
        within = info.annotation
        if name in without:
            continue
        if isinstance(within, type) and issubclass(within, BaseModel):
            found += _fields(within, f"{pointer}/{name}", of=f"{name} ")
        else:
            found.append(_field(f"{pointer}/{name}", f"{of}{name}", described[name]))
    return found


def _field(pointer: str, label: str, facts: dict[str, Any]) -> FormField:
    variants = facts.get("anyOf", [facts])
    main = next(variant for variant in variants if variant.get("type") != "null")
    options = [str(option) for option in main.get("enum") or main.get("items", {}).get("enum") or []]
    kinds = {
        "boolean": "flag" if isinstance(facts.get("default"), bool) else "maybe",
        "array": "several" if options else "numbers",
        "string": "choice" if options else "text",
        "object": "json",
    }
    low, above = main.get("minimum"), main.get("exclusiveMinimum")
    return FormField(
        name=pointer,
        label=label.replace("_", " ").capitalize(),
        help=facts.get("description", "").replace("null", "empty"),
        kind=kinds.get(main["type"], "number"),
        default=facts.get("default"),
        low=low if low is not None else above,
        high=main.get("maximum", main.get("exclusiveMaximum")),
        whole=main["type"] == "integer",
        options=options,
    )
