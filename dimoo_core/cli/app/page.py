"""The page: what stands where, and what a click does. The only file that knows gradio."""

from __future__ import annotations

import html
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ...devices import is_out_of_memory
from ...pictures.sizes import CELL, PATCH
from ...provenance import identified_checkpoint
from ...sampling.ml_cache import PRESETS
from ...sampling.orders import ORDERS
from ...sampling.text_cache import SPEEDS
from ...sequence.prompt import DESCRIBE_QUESTION, EDITS, MAX_CHARACTERS
from ..messages import sentence
from ..vocabulary import KNOWN, is_nano, unknown_words
from .desk import Desk, Done, Job, Step, Stopped, Update, Waiting
from .work import Form, Workshop, asked, on_easel

MAX_UPLOAD = 64 << 20  # bytes
_SEEDS = 2**32  # how many there are to draw from: enough, and short to type
_VISITORS = 32  # that may wait for their turn; more are kept by gradio

_STYLE = """
.result img { width: 100%; height: 100%; object-fit: contain; }
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.seeds { align-items: center; }
.said { min-height: 2.2em; }
.said progress { width: 10em; height: .7em; vertical-align: baseline; margin-right: .8em;
    accent-color: var(--color-accent); }
"""

_log = logging.getLogger(__name__)


class Page:
    """The forms of all jobs. Visitors share one pipeline; each sees and stops only what is their own."""

    def __init__(self, workshop: Workshop, desk: Desk) -> None:
        self.workshop, self.desk = workshop, desk
        self.found = workshop.pipe.checkpoint
        self.own = self.found.defaults

    def blocks(self) -> gr.Blocks:
        """The page as gradio serves it."""
        with gr.Blocks(title="DiMOO", analytics_enabled=False) as blocks:
            gr.Markdown(self._heading())
            with gr.Tabs() as tabs:
                with gr.Tab("Text to image", id="generate"):
                    made = self._generate()
                with gr.Tab("Edit", id="edit"):
                    edited, edit_input = self._edit()
                with gr.Tab("Inpaint", id="inpaint"):
                    inpainted, inpaint_input = self._inpaint()
                with gr.Tab("Describe", id="describe"):
                    describe_input = self._describe()
            targets = {"edit": edit_input, "inpaint": inpaint_input, "describe": describe_input}
            for picture, row in (made, edited, inpainted):
                self._hand_on(picture, row, tabs, targets)
            blocks.unload(self._left)
            blocks.queue(max_size=_VISITORS, default_concurrency_limit=_VISITORS)
        return blocks

    def _heading(self) -> str:
        name = html.escape(identified_checkpoint(self.found)["name"])
        hint = f" A toy world of coloured shapes, for trying things out. {KNOWN}" if self._is_nano else ""
        loras = [html.escape(f"{Path(one.name).name} ({one.strength:g})") for one in self.workshop.args.loras]
        return f"# DiMOO\n**{name}**{', with ' + ', '.join(loras) if loras else ''}.{hint}"

    @property
    def _is_nano(self) -> bool:
        return is_nano(self.workshop.args.checkpoint)

    # Tabs ------------------------------------------------------------------------------------------------------------

    def _generate(self) -> tuple[gr.Image, gr.Row]:
        width, height = self.own.size
        with gr.Row():
            with gr.Column(scale=4):
                words = _words("What the picture should show", self._example("a large red circle on a cyan background"))
                with gr.Row():
                    size = {
                        name: gr.Slider(CELL, max(2048, side), side, step=CELL, label=f"{name.capitalize()} (px)")
                        for name, side in (("width", width), ("height", height))
                    }
                seed = _seed()
                run, cancel = _buttons("Generate")
                fields = {"prompt": words, **size, **seed, **self._sampling()}
            picture, said, row = self._result("Picture")
        self._wire("generate", fields, self.workshop.generate, [run.click, words.submit], cancel, run, picture, said)
        return picture, row

    def _edit(self) -> tuple[tuple[gr.Image, gr.Row], gr.Image]:
        with gr.Row():
            with gr.Column(scale=4):
                image = self._upload("Picture")
                kinds = [(task.label, name) for name, task in EDITS.items()]
                kind = gr.Dropdown(kinds, value="edit_replace", label="What to do")
                with gr.Column() as in_words:
                    words = _words("What to change", self._example("make the circle yellow"))
                with gr.Column(visible=False) as second:
                    reference = self._upload("Picture whose style to take")
                seed = _seed()
                run, cancel = _buttons("Edit")
                sampling = self._sampling(image_cfg=True)
            picture, said, row = self._result("Edited picture")

        def needed(name: str) -> list[dict[str, Any]]:
            task = EDITS[name]
            return [gr.update(visible=task.text is None), gr.update(visible=task.images == 2)]

        kind.change(needed, kind, [in_words, second], **_QUIET)
        fields = {"image": image, "type": kind, "prompt": words, "reference": reference, **seed, **sampling}
        self._wire("edit", fields, self.workshop.edit, [run.click, words.submit], cancel, run, picture, said)
        return (picture, row), image

    def _inpaint(self) -> tuple[tuple[gr.Image, gr.Row], gr.Image]:
        with gr.Row():
            with gr.Column(scale=4):
                with gr.Column() as empty:
                    image = self._upload("Picture")
                with gr.Column(visible=False) as full:
                    easel = gr.ImageEditor(
                        label="Paint over a part of the picture",
                        type="pil",
                        sources=[],
                        transforms=[],
                        layers=False,
                        buttons=[],
                        brush=gr.Brush(colors=["#ff2d78"], color_mode="fixed", default_size=24),
                        eraser=gr.Eraser(default_size=24),
                        format="png",
                        elem_id="easel",
                    )
                    other = gr.Button("Take another picture", size="sm")
                words = _words(
                    "What the whole picture should show", self._example("a small green square on a cyan background")
                )
                outpaint = gr.Radio(
                    [("what I paint over", False), ("everything else", True)], value=False, label="Repaint"
                )
                seed = _seed()
                run, cancel = _buttons("Inpaint")
                with gr.Accordion("A mask from a file", open=False):
                    mask = self._upload("White counts as painted over; it takes the place of what you paint")
                grow = gr.Slider(0, 8, 0, step=1, label="Widen the mask by (cells of 16 px)", render=False)
                sampling = self._sampling(grow)
            picture, said, row = self._result("Repainted picture")

        def put_up(path: Path | None) -> list[Any]:
            shown = None if path is None else self._told(on_easel, path)
            return [shown, gr.update(visible=shown is None), gr.update(visible=shown is not None)]

        image.change(put_up, image, [easel, empty, full], **{**_QUIET, "queue": True})  # else an error stays unsaid
        other.click(lambda: None, None, image, **_QUIET)
        fields = {"image": image, "easel": easel, "mask": mask, "prompt": words, "outpaint": outpaint}
        fields |= {"grow": grow, **seed, **sampling}
        self._wire("inpaint", fields, self.workshop.inpaint, [run.click, words.submit], cancel, run, picture, said)
        return (picture, row), image

    def _describe(self) -> gr.Image:
        with gr.Row():
            with gr.Column(scale=4):
                image = self._upload("Picture")
                question = gr.Textbox(
                    DESCRIBE_QUESTION, label="Question", lines=2, max_length=MAX_CHARACTERS, submit_btn=False
                )
                seed = _seed()
                run, cancel = _buttons("Describe")
                with gr.Accordion("More settings", open=False):
                    block = self.own.block_length
                    longest = max(1024 // block * block, self.own.max_tokens)
                    settings = {
                        "max_tokens": gr.Slider(
                            block, longest, self.own.max_tokens, step=block, label="Longest answer (tokens)"
                        ),
                        "temperature": gr.Slider(
                            0, 2, 0, step=0.05, label="Temperature", info="0: the likeliest answer."
                        ),
                        "cfg": gr.Slider(
                            0, 10, 0, step=0.1, label="Guidance", info="Above 0: weigh picture and question more."
                        ),
                        "speed": gr.Radio(
                            list(SPEEDS),
                            value="exact",
                            label="Speed",
                            info="The faster ones read the picture less often; a word may differ now and then.",
                        ),
                    }
            with gr.Column(scale=5):
                answer = gr.Textbox(label="Answer", lines=8, interactive=False, buttons=["copy"])
                said = gr.HTML(elem_classes="said", padding=False)
        fields = {"image": image, "question": question, **seed, **settings}
        self._wire("describe", fields, self.workshop.describe, [run.click, question.submit], cancel, run, answer, said)
        return image

    def _sampling(self, *first: gr.Component, image_cfg: bool = False) -> dict[str, gr.Component]:
        """The settings that are folded away, and which begin with `first`."""
        own = self.own
        with gr.Accordion("More settings", open=False):
            for component in first:
                component.render()
            settings: dict[str, gr.Component] = {
                "negative": gr.Textbox("", label="What not to show", max_length=MAX_CHARACTERS),
                "steps": gr.Slider(
                    1,
                    max(128, own.steps),
                    own.steps,
                    step=1,
                    label="Steps",
                    info="More are slower and, up to a point, better.",
                ),
                "cfg": gr.Slider(
                    0, 20, own.cfg, step=0.1, label="Guidance", info="How closely to follow the words; 0 is fastest."
                ),
            }
            if image_cfg:
                settings["image_cfg"] = gr.Slider(
                    0, 20, own.image_cfg, step=0.1, label="Image guidance", info="How closely to follow the picture."
                )
                settings["side"] = gr.Slider(
                    PATCH,
                    max(1024, own.side),
                    own.side,
                    step=PATCH,
                    label="Size (px)",
                    info="The picture is fitted to about the area of a square with this side.",
                )
                settings["own_size"] = gr.Checkbox(False, label="Give the result the size of the picture")
            settings["temperature"] = gr.Slider(
                0,
                2,
                own.temperature,
                step=0.05,
                label="Temperature",
                info="Variety; 0: the same picture for every seed.",
            )
            settings["guidance_start"] = gr.Slider(
                0, 0.95, 0, step=0.05, label="Guidance starts at", info="Share of the steps that run without guidance."
            )
            settings["ml_cache"] = gr.Radio(
                list(PRESETS), value="off", label="ML-Cache", info="Reuses earlier results to save time; off is exact."
            )
            settings["polish"] = gr.Slider(
                0,
                8,
                0,
                step=1,
                label="Polish (passes)",
                info="Redraw what does not fit in the finished picture. Half the steps and 2 passes save time.",
            )
            settings["corrections"] = gr.Slider(
                0, 64, 0, step=1, label="Corrections (cells)", info="Doubtful cells that each later step fills again."
            )
            settings["order"] = gr.Radio(
                list(ORDERS),
                value="confidence",
                label="Order",
                info="Which cells are filled first: the most certain, spread evenly over the picture, or any.",
            )
            settings["shared_noise"] = gr.Slider(
                0,
                1,
                0,
                step=0.05,
                label="Shared noise",
                info="Share of the steps, at the start, in which all cells draw with the same noise. For few steps.",
            )
        return settings

    def _upload(self, label: str) -> gr.Image:
        """A place for a picture. The job gets its path: gradio by itself would decode the file, whatever it is."""
        image = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=280, buttons=[])
        image.preprocess = self._path_of
        return image

    def _result(self, label: str) -> tuple[gr.Image, gr.HTML, gr.Row]:
        """Where a picture comes out, what is said of it, and a row for what can be done with it."""
        with gr.Column(scale=5):
            picture = gr.Image(
                elem_classes="result",
                label=label,
                type="filepath",
                format="png",
                interactive=False,
                height=520,
                buttons=["download", "fullscreen"],
            )
            picture.preprocess = self._path_of
            said = gr.HTML(elem_classes="said", padding=False)
            row = gr.Row()
        return picture, said, row

    def _path_of(self, payload: Any) -> Path | None:
        """The file behind what the browser sent. gradio checks a path only where the sender marks it as a file's, so
        that it was uploaded or made here is checked again."""
        if payload is None:
            return None
        path = Path(payload.path or "").resolve()
        if not path.is_relative_to(self.workshop.folder):
            raise gr.Error("That picture was not uploaded here.", print_exception=False)
        return path

    def _example(self, words: str) -> str:
        """Words to begin with, where the checkpoint has so small a world that one cannot guess any."""
        return words if self._is_nano else ""

    def _hand_on(self, picture: gr.Image, row: gr.Row, tabs: gr.Tabs, targets: dict[str, gr.Image]) -> None:
        """Buttons below a result that take it to another tab."""
        with row:
            for name, target in targets.items():
                button = gr.Button(f"{name.capitalize()} this", size="sm")
                button.click(
                    lambda path, name=name: [path or gr.skip(), gr.update(selected=name)],
                    picture,
                    [target, tabs],
                    **_QUIET,
                )

    # Events ----------------------------------------------------------------------------------------------------------

    def _wire(
        self,
        name: str,
        fields: dict[str, gr.Component],
        work: Callable[[Form, Job], Any],
        triggers: list[Callable],
        cancel: gr.Button,
        run: gr.Button,
        result: gr.Component,
        said: gr.HTML,
    ) -> None:
        """A job's events: it begins, it goes on, it has ended in whatever way; and it is cancelled."""

        def job(request: gr.Request, *values: Any) -> Iterator[tuple]:
            yield from self._run((str(request.session_hash), name), dict(zip(fields, values, strict=True)), work)

        def stop(request: gr.Request) -> dict[str, Any]:
            self.desk.stop(str(request.session_hash), name)
            return gr.update(interactive=False)

        buttons = [run, cancel]
        begun = gr.on(triggers, lambda: _BEGUN, None, buttons, **_QUIET)
        worked = begun.then(
            job,
            list(fields.values()),
            [result, said, fields["seed"], *buttons],
            concurrency_id=name,
            concurrency_limit=_VISITORS,
            show_progress="hidden",
            api_visibility="private",
        )
        worked.failure(lambda: _IDLE, None, buttons, **_QUIET)  # it may fail before it begins, too: the line is full
        cancel.click(stop, None, cancel, **_QUIET)

    def _run(self, owner: tuple[str, ...], form: dict[str, Any], work: Callable[[Form, Job], Any]) -> Iterator[tuple]:
        """What a form shows while its job waits and works: (result, sentence, seed, button to run, to cancel)."""
        draw = form.pop("draw")
        form["seed"] = secrets.randbelow(_SEEDS) if draw else int(form["seed"] or 0)
        remark = unknown_words(self.workshop.args.checkpoint, asked(form))
        if remark:
            gr.Warning(_spelt(remark))
        began = time.monotonic()
        updates = self.desk.run(owner, partial(work, form))
        try:
            while (update := self._told(next, updates, None)) is not None:
                result, said, *buttons = _shown(update, f"{time.monotonic() - began:.1f} s, seed {form['seed']}")
                yield result, said, form["seed"] if draw else gr.skip(), *buttons
        except gr.Error as error:
            yield gr.skip(), error.message, gr.skip(), *_IDLE
            raise

    def _told(self, work: Callable, *arguments: Any) -> Any:
        """What `work` returns; whatever goes wrong there is one sentence on the page."""
        try:
            return work(*arguments)
        except (ValueError, OSError) as error:
            said = sentence(error, self.workshop.args)
        except Exception as error:
            if is_out_of_memory(error):
                said = "The device has too little memory for this: a smaller picture takes less."
            else:
                _log.exception("A job of the page failed.")
                said = "Something went wrong that should not; the terminal where this page was started says more."
        below = re.escape(str(self.workshop.folder))
        raise gr.Error(_spelt(re.sub(rf"{below}[\\/](\w+[\\/])*", "", said)), print_exception=False)

    def _left(self, request: gr.Request) -> None:
        """A visitor closed the page: nobody waits for their jobs."""
        self.desk.stop(str(request.session_hash))


def _shown(update: Update, facts: str) -> tuple:
    """What a form shows after an update: (result, sentence, button to run, to cancel)."""
    if update == Waiting(0):
        return gr.skip(), "Starting ...", *_BUSY
    if isinstance(update, Waiting):
        jobs = "one job is" if update.ahead == 1 else f"{update.ahead} jobs are"
        return gr.skip(), f"Waiting: {jobs} before this one.", *_BUSY
    if isinstance(update, Step):
        bar = f'<progress value="{update.done}" max="{update.total}"></progress>'
        return update.shown, f"{bar}Step {update.done} of {update.total}", *_BUSY
    if isinstance(update, Stopped):
        return gr.skip(), f"Cancelled after {update.done} step{'s' * (update.done != 1)}.", *_IDLE
    assert isinstance(update, Done)
    return str(update.result), f"Done: {facts}.", *_IDLE


def _spelt(text: str) -> str:
    """Any text, half characters and markup too, as HTML that says it."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


# The buttons that run and cancel a job: until it stands in the line, while it waits and works, and else
_BEGUN = (gr.update(interactive=False), gr.update(interactive=False))
_BUSY = (gr.update(interactive=False), gr.update(interactive=True))
_IDLE = (gr.update(interactive=True), gr.update(interactive=False))

# An event that is over at once: it does not wait, shows no progress, and is no entry to the server for programs.
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def _words(label: str, value: str) -> gr.Textbox:
    return gr.Textbox(value, label=label, lines=3, max_length=MAX_CHARACTERS)


def _seed() -> dict[str, gr.Component]:
    with gr.Row(elem_classes="seeds"):
        seed = gr.Number(0, label="Seed", precision=0)
        draw = gr.Checkbox(True, label="A new seed each time")
    return {"seed": seed, "draw": draw}


def _buttons(title: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(title, variant="primary", scale=3), gr.Button("Cancel", variant="stop", interactive=False)


class _OwnPage:
    """Refuses what another site's page sends: any page that its visitor looks at can send to 127.0.0.1, unasked."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "POST" and (b"sec-fetch-site", b"cross-site") in scope["headers"]:
            await PlainTextResponse("Only the page itself may send to its server.", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


@contextmanager
def serve(page: Page, host: str, port: int | None, *, share: bool) -> Iterator[list[str]]:
    """Serve a page while the `with` lasts; gives its addresses."""
    blocks = page.blocks()
    fonts = ["system-ui", "sans-serif"]  # of the visitor's own: none is fetched
    _, local, public = blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        inbrowser=False,
        prevent_thread_lock=True,
        ssr_mode=False,
        max_file_size=MAX_UPLOAD,
        max_threads=4 * _VISITORS,
        footer_links=[],
        enable_monitoring=False,
        mcp_server=False,
        app_kwargs={"middleware": [Middleware(_OwnPage)]},
        theme=gr.themes.Default(
            primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
        ),
        css=_STYLE,
    )
    try:
        yield [url for url in (local, public) if url]
    finally:
        blocks.close(verbose=False)
