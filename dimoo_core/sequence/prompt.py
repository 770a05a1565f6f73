"""Tasks with their system prompts, and the prompt strings made from a user's words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

MAX_CHARACTERS = 10_000  # about 2500 tokens: more than any caption the model was trained on
UNCONDITION = "<uncondition>"
DESCRIBE_QUESTION = "Describe the image."  # the question where none is given


@dataclass(frozen=True)
class Task:
    """A job of the model: its system prompt, its fixed user text (None: the user's) and how many images it takes.

    label: what people call it; empty for the jobs that nobody has to choose.
    """

    name: str
    system: str
    text: str | None = None
    images: int = 1
    label: str = ""


def _dense(name: str, what: str, label: str) -> Task:
    # The released script looks for "dense" in the name, finds it in none of these and so falls through to another
    # prompt; the authors' diffusers port corrects canny. This is the prompt the tasks were trained with.
    text = f"Generate a {what} according to the image."
    return Task(name, "Perform dense prediction on the given images.", text, label=f"map: {label}")


def _family(system: str, **labels: str) -> list[Task]:
    return [Task(name, system, label=label) for name, label in labels.items()]


def _view(side: str, label: str) -> Task:
    text = f"Generate the {side} view based on the provided front view."
    return Task(f"multi_view_{side}", "Generate a view-image based on the given image.", text, label=label)


_STYLE = "Transform the current image into the style of the provided image."

GENERATE = Task("text_to_image", "Generate an image according to the text prompt.", images=0)
DESCRIBE = Task(
    "describe",
    "You are a multimodal model that can process both text and images. Answer the following question based on the "
    "provided images. Analyze each image and combine relevant details to answer.",
)
EDITS: dict[str, Task] = {
    task.name: task
    for task in (
        *_family(
            "Generate an image applying the following editing instruction based on the original image.",
            edit_add="add something",
            edit_remove="remove something",
            edit_replace="replace something",
            edit_background="change the background",
            edit_text_transfer="change the writing",
        ),
        _dense("canny_pred", "canny edge map", "canny edges"),
        _dense("hed_pred", "hed edge map", "soft edges (HED)"),
        _dense("depth_pred", "depth map", "depth"),
        _dense("openpose_pred", "pose estimation map", "body pose (OpenPose)"),
        _dense("normal_pred", "normal map", "surface normals"),
        _dense("sam2mask_pred", "sam2 mask", "segmentation (SAM 2)"),
        *_family(
            "Generate an image according to the text prompt and the given control image.",
            canny_control="picture from canny edges",
            hed_control="picture from soft edges (HED)",
            depth_control="picture from a depth map",
            openpose_control="picture from a body pose (OpenPose)",
        ),
        *_family(
            "Generate an image according to the text prompt and the given object image.",
            subject_driven="same subject, new scene",
        ),
        Task("image_ref_transfer", _STYLE, _STYLE, images=2, label="style of the reference image"),
        _view("left", "view from the left"),
        _view("right", "view from the right"),
        _view("back", "view from behind"),
    )
}
# What an edit may be called: its label, and the id that it has in the released code, in files and in older workflows.
EDIT_NAMES: dict[str, Task] = {task.label: task for task in EDITS.values()} | EDITS


def check_text(name: str, text: object) -> None:
    """Raises ValueError unless `text`, called `name` in the message, is text that can be tokenised and is not too
    long."""
    if not isinstance(text, str):
        raise ValueError(f"The {name} is of type {type(text).__name__}; expected words.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The {name} has {len(text)} characters; expected at most {MAX_CHARACTERS}: shorten it.")
    broken = [character for character in text if "\ud800" <= character <= "\udfff"]
    if broken:
        raise ValueError(
            f"The {name} has {broken[0]!a}, which is half of a character or not UTF-8; expected whole characters: "
            "type it again, or save its file as UTF-8."
        )


def edit_task(name: str) -> Task:
    """The task of an edit type, called by its id or its label; raises ValueError, naming all ids, for another name."""
    if not isinstance(name, str) or name not in EDIT_NAMES:
        raise ValueError(f"Unknown edit type {name!r:.80}; expected one of {', '.join(EDITS)}.")
    return EDIT_NAMES[name]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A task, the user's text, a negative text (empty: `<uncondition>` takes its place) and images as codes.

    images: int64 [1 or B,h,w] each, in the order in which the task names them (style: the picture, then the style).
    Raises ValueError where a text is too long or the number of images is not the task's.
    """

    task: Task
    text: str = ""
    negative: str = ""
    images: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        check_text("text", self.text)
        check_text("negative text", self.negative)
        expected, given = self.task.images, len(self.images)
        if (given == 0) if self.task is DESCRIBE else (given != expected):
            takes = "at least one image" if self.task is DESCRIBE else f"{expected} image{'s' * (expected != 1)}"
            raise ValueError(f"Got {given} images for {self.task.name}; expected {takes}.")


def prompt_strings(prompt: Prompt, defuse: Callable[[str], str]) -> tuple[str, str]:
    """The prompt and its unconditional counterpart; `defuse` takes special tokens out of the user's words."""
    text = prompt.task.text if prompt.task.text is not None else defuse(prompt.text)
    unconditional = defuse(prompt.negative) if prompt.negative else UNCONDITION
    system = f"<system>{prompt.task.system}</system>"
    return f"{system}<user>{text}</user>", f"{system}<user>{unconditional}</user>"
