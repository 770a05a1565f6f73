"""What a run tells while it trains: a line of JSON for every step, a picture of the curve, TensorBoard if installed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..files import atomic_write, atomic_write_text
from .loop import Step

LOG, CURVE = "log.jsonl", "loss.png"
_SIZE, _MARGIN = (960, 480), 48  # px
_COLOURS = {"loss": "#9db8d9", "smoothed": "#1f5fa8", "held_back": "#d9622b"}


class RunLog:
    """The log in a run's folder. Lines of steps after `step`, which a run that goes on from there makes again, are
    dropped. quiet: nothing is written, as in all processes of a run but the first."""

    def __init__(self, folder: Path, step: int = 0, *, quiet: bool = False):
        self.file, self.curve, self.quiet = folder / LOG, folder / CURVE, quiet
        self.lines = [line for line in read_log(self.file) if line["step"] <= step]
        self._board = None
        if quiet:
            return
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{json.dumps(line)}\n" for line in self.lines)
        if not self.file.exists() or self.file.read_text(encoding="utf-8", errors="replace") != text:
            atomic_write_text(self.file, text)
        self._board = _tensorboard(folder, step)

    def add(self, step: int, **numbers: float) -> None:
        """A line: the step and its numbers (loss, learning_rate, gradient_norm, seconds; held_back_loss)."""
        line = {"step": step, **numbers}
        self.lines.append(line)
        if self.quiet:
            return
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
        if self._board is not None:
            for name, number in numbers.items():
                self._board.add_scalar(name, number, step)

    def record(self, step: Step) -> None:
        """The line of a step."""
        self.add(
            step.number,
            loss=step.loss,
            learning_rate=step.rate,
            gradient_norm=step.gradient_norm,
            seconds=round(step.seconds, 3),
        )

    def has(self, step: int, name: str) -> bool:
        """Whether there is a number of that name for a step."""
        return any(line["step"] == step and name in line for line in self.lines)

    def draw(self) -> None:
        """Write the picture of the curve, unless that is impossible just now: on Windows a viewer may hold it."""
        if self.lines and not self.quiet:
            with suppress(OSError), atomic_write(self.curve) as part:
                draw_curve(self.lines).save(part, "PNG")

    def close(self) -> None:
        """The last thing to do: what TensorBoard has not got yet is written."""
        self.draw()
        if self._board is not None:
            self._board.close()

    def losses(self) -> list[float]:
        """The loss of every step so far."""
        return [line["loss"] for line in self.lines if "loss" in line]


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut off, as by a crash while it was written, is left out."""
    lines: list[dict[str, Any]] = []
    if not file.is_file():
        return lines
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def smoothed(values: Sequence[float], weight: float = 0.95) -> list[float]:
    """The exponential mean of all values so far, without a bias to the first (as in Adam)."""
    mean, result = 0.0, []
    for number, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        result.append(mean / (1 - weight**number))
    return result


def draw_curve(lines: Sequence[Mapping[str, Any]]) -> Image.Image:
    """The loss over the steps: each step pale, their mean dark, and the held-back loss."""
    trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held = [(line["step"], line["held_back_loss"]) for line in lines if "held_back_loss" in line]
    steps, losses = [step for step, _ in trained], [loss for _, loss in trained]
    curves = {
        "loss": trained,
        "smoothed": list(zip(steps, smoothed(losses), strict=True)),
        "held_back": held,
    }
    image = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(image)
    points = [*trained, *held]
    last = max([1, *(step for step, _ in points)])
    low, high = min([loss for _, loss in points], default=0.0), max([loss for _, loss in points], default=1.0)
    high = high if high > low else low + 1
    width, height = _SIZE[0] - 2 * _MARGIN, _SIZE[1] - 2 * _MARGIN

    def place(step: float, loss: float) -> tuple[float, float]:
        return _MARGIN + width * step / last, _MARGIN + height * (high - loss) / (high - low)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        loss, step = low + share * (high - low), share * last
        pen.line([place(0, loss), place(last, loss)], fill="#e4e4e4")
        pen.text((4, place(0, loss)[1] - 6), f"{loss:.3g}", fill="#555555")
        pen.text((place(step, low)[0] - 8, _SIZE[1] - _MARGIN + 8), f"{step:.0f}", fill="#555555")
    for name, curve in curves.items():
        if len(curve) > 1:
            pen.line([place(*point) for point in curve], fill=_COLOURS[name], width=1 if name == "loss" else 2)
        for point in curve if name == "held_back" else ():
            x, y = place(*point)
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=_COLOURS[name])
    for row, (name, words) in enumerate((("smoothed", "loss (mean)"), ("held_back", "held-back loss"))):
        if curves[name]:
            pen.text((_SIZE[0] - 160, 8 + 14 * row), words, fill=_COLOURS[name])
    return image


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer for TensorBoard, or None where it is not installed; what it shows of steps after `step` is dropped."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
