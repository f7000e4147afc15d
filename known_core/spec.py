"""What a job asks for: the settings of each part, typed and bounded. Shared by the library, the CLI and the API."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictBool

Rate = Annotated[float, Field(ge=0.1, le=0.95, allow_inf_nan=False)]
LearningRate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Settings(BaseModel):
    """Base of every part of a request: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ForgettingSettings(Settings):
    """How the trajectory is made (paper, section 3)."""

    rate: Rate = Field(0.5, description="r: each subset holds this share of the one before it")
    states: Literal[5] = Field(5, description="S: states a window holds; KNOWN reads five")
    epochs_per_stage: int = Field(1, ge=1, le=1000, description="passes over each stage's subset")
    learning_rate: LearningRate | None = Field(
        None, description="AdamW, constant over a stage, no weight decay; null: the task's own"
    )
    batch_size: int | None = Field(None, ge=1, le=65536, description="examples a step; null: the task's own")
    micro_batch_size: int | None = Field(
        None, ge=1, le=65536, description="examples in memory at once; null: as many as fit, found by trial on a GPU"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the arithmetic; auto: bfloat16 on a GPU that has it, else float32"
    )
    gradient_checkpointing: StrictBool | None = Field(
        None, description="less memory for a third more time; null: where the batch does not fit otherwise"
    )
    max_length: int | None = Field(None, ge=8, le=1 << 20, description="tokens of an example; null: at most 512")
    seed: Seed = Field(0, description="of the nested subsets and of the order of examples")


_Name = Annotated[str, Field(min_length=1, max_length=255)]


class DataSettings(Settings):
    """How a data set's files are read; everything is inferred where it is not given."""

    config: _Name | None = Field(None, description="the configuration (subset) of a data set that has several")
    split: _Name | None = Field(None, description="what the model was trained on; default: train")
    evaluation_split: _Name | None = Field(None, description="what to evaluate on; default: test or validation")
    columns: dict[_Name, _Name] = Field(
        default_factory=dict, max_length=8, description='which column plays which role: {"image": "img"}'
    )
    labels: dict[_Name, _Name] = Field(
        default_factory=dict, max_length=100_000, description="the data's class names to the model's label names"
    )
    max_examples: int | None = Field(None, ge=10, description="a seeded sample of the training examples of this size")


Control = Literal["continued", "swa", "mean", "shrink"]


class NowcastSettings(Settings):
    """How the trajectory is read, and what the predictions are compared with."""

    hypermodel: str | None = Field(
        None, description="name of a hyper-model, known-v1 or known-paper; null is the server's own"
    )
    recurrences: int = Field(3, ge=1, le=4, description="steps back; with rate 0.5: x2, x4, x8, x16")
    controls: tuple[Control, ...] = Field(
        ("continued", "swa"),
        description="simpler candidates beside the predictions: continued, the training on of all of D_0 that a fan "
        "begins with; swa, the same for the epochs that the whole fan costs; mean, of all states; shrink, the given "
        "weights scaled to the norms of the last prediction",
    )


class LandscapeSettings(Settings):
    """The loss over the plane of the trajectory, for the report's figure alone."""

    points: Literal[0] | Annotated[int, Field(ge=3, le=51)] = Field(
        9, description="of the grid along each axis; 0: no loss is measured"
    )
    examples: int = Field(32, ge=1, le=4096, description="held-out examples, at most, that each loss is the mean of")


class EvaluationSettings(Settings):
    """How before and after are compared."""

    holdout: float = Field(0.1, ge=0.01, le=0.5, allow_inf_nan=False, description="share of the data set kept for "
                           "evaluation where it has no test split of its own")  # fmt: skip
    select: str = Field(
        "best",
        pattern=rf"^(best|x[0-9.]+|{'|'.join(get_args(Control))})$",
        description='"best", or the name of the candidate to deliver',
    )
    seeds: int = Field(3, ge=3, le=50, description="fine-tuning runs of the transfer probe for each candidate")
    probe_examples: int = Field(200, ge=10, le=100_000, description="labelled examples the probe fine-tunes on")
    probe_epochs: int = Field(15, ge=1, le=1000, description="passes over them")
    probe_learning_rates: tuple[LearningRate, ...] | None = Field(
        None,
        min_length=1,
        max_length=5,
        description="grid; each candidate takes its own best on validation; null: the task's own",
    )
    landscape: LandscapeSettings = Field(
        LandscapeSettings(), description="the loss over the plane of the trajectory, a figure of the report"
    )


class HubTarget(Settings):
    """A repository on the Hugging Face Hub that a result goes to."""

    repo_id: str = Field(min_length=3, max_length=200, description="owner/name; made if it is not there")
    private: StrictBool = Field(True, description="of a new repository; one that is there has to be private too")
    create_pr: StrictBool = Field(False, description="open a pull request instead of committing")
    revision: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="branch to commit to, or to open the pull request for; null: main",
    )
    parent_commit: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="commit only if the branch is still at this commit"
    )
    commit_message: str | None = Field(None, min_length=1, max_length=200, description="null names the candidate")


class OutputSettings(Settings):
    """How the candidates are written, and where they go."""

    hub: HubTarget | None = Field(None, description="a repository to put the selected candidate into")

    max_shard_size: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]{0,8}[KMGT]B$",
        description='of a candidate\'s files, such as "5GB"; null keeps the files of the given checkpoint',
    )


class JobSpec(Settings):
    """One job, complete: what :func:`known_core.pipeline.run` does.

    Paths are folders, zips or single files as docs/guide.md describes them. Either ``model`` and ``dataset`` are given,
    or ``trajectory`` alone.

    Args:
        base: for a LoRA adapter, the model it was trained on.
        trajectory: five checkpoints of one model, the most recent first, instead of model and data.
        task: None is the one that the checkpoint's config says.
        file_names: what single files were called, by input, where their paths do not say.
        origins: where inputs came from, for the report: {"model": {"hub": {"repo_id": ..., "revision": ...}}}.
    """

    model: Path | None = None
    config: dict[str, Any] | None = None
    base: Path | None = None
    dataset: Path | None = None
    data: DataSettings = DataSettings()
    downstream: Path | None = None
    downstream_data: DataSettings = DataSettings()
    trajectory: tuple[Path, ...] | None = None
    task: str | None = None
    forgetting: ForgettingSettings = ForgettingSettings()
    nowcast: NowcastSettings = NowcastSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    output: OutputSettings = OutputSettings()
    file_names: dict[str, str] = {}
    origins: dict[str, Any] = {}


def paths_of(spec: JobSpec) -> dict[str, Path]:
    """The inputs that a job names: model, base, dataset, downstream, or state-0 and on."""
    paths = {"model": spec.model, "base": spec.base, "dataset": spec.dataset, "downstream": spec.downstream}
    states = {f"state-{index}": path for index, path in enumerate(spec.trajectory or ())}
    return {name: path for name, path in paths.items() if path is not None} | states


def with_paths(spec: JobSpec, change: Callable[[Path], Path]) -> JobSpec:
    """The same job with its inputs elsewhere. Args: change: of each path."""
    paths = {name: change(path) for name, path in paths_of(spec).items() if not name.startswith("state-")}
    trajectory = None if spec.trajectory is None else tuple(map(change, spec.trajectory))
    return spec.model_copy(update={**paths, "trajectory": trajectory})


def candidate_names(rate: float, recurrences: int) -> list[str]:
    """The name of each prediction by the data it stands for: x2, x4, x8 with rate 0.5."""
    return [f"x{_three_digits((1 / rate) ** step)}" for step in range(1, recurrences + 1)]


def _three_digits(value: float) -> str:
    """At least three significant digits in plain decimals: 2, 1.11, 1.0e4 as 10000."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
