"""Checkpoints by the names that the loader lists: found, downloaded, converted to a byte per weight.

What is converted goes into a model folder as one file, NAME-fp8.safetensors or NAME-int8.safetensors, and is listed
from then on. The file says which checkpoint it was made of, so that another one of that name is converted again.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..dimoo_core.checkpoint.convert import convert
from ..dimoo_core.checkpoint.find import NANO, Found, candidates, find
from ..dimoo_core.checkpoint.headers import read_header, visible
from ..dimoo_core.checkpoint.single_file import SOURCE, SUFFIX
from ..dimoo_core.checks import shown
from ..dimoo_core.files import check_writable
from ..dimoo_core.hub.download import REPO, download
from ..dimoo_core.locks import folder_lock
from ..dimoo_core.model.quantised import FP8, INT8
from ..dimoo_core.provenance import fingerprint
from . import host

BUILT_IN = "DiMOO-nano (built in)"
DOWNLOAD = "download: Lumina-DiMOO (16 GB)"
QUANTISED = {"fp8": FP8, "int8": INT8}  # weight_dtypes that a checkpoint is converted to
_SHARES = {"fp8": 0.69, "int8": 0.59}  # of the published checkpoint's size
_PUBLISHED = REPO.split("/")[1]
_WORKSHOP = ".converting"  # in a model folder, for a file that is not whole yet; lists pass over its name


def checkpoints() -> dict[str, Path]:
    """Names as the loader lists them, and the folders they stand for; of two with one name the first counts."""
    found = {BUILT_IN: NANO}
    for root in host.model_folders():
        for folder in candidates(root):
            inside = folder.relative_to(root).as_posix()
            found.setdefault(host.without_html(root.name if inside == "." else inside), folder)
    return found


def resolve(name: str) -> Found:
    """The checkpoint of a name, as listed, as on disk, or as saved on Windows; raises ValueError where it is gone or
    broken."""
    path = host.named(name, checkpoints())
    if path is None:
        raise ValueError(f"There is no checkpoint {shown(name)} any more; refresh the page and choose one of the list.")
    return find(path)


def chosen(name: str, weight_dtype: str = "auto") -> Found | None:
    """The checkpoint that the loader loads for a name of its list and a weight_dtype; None for one that is still to be
    downloaded or converted. Raises as `resolve`."""
    source = _published() if name == DOWNLOAD else resolve(name)
    if weight_dtype not in QUANTISED:
        return source
    return _converted(_PUBLISHED if source is None else _stem(source), weight_dtype, source)


def prepared(name: str, weight_dtype: str = "auto") -> Found:
    """As `chosen`, and what is missing is downloaded and converted, with ComfyUI's progress and cancel. Raises
    ValueError where that cannot be done."""
    found = chosen(name, weight_dtype)
    if found is not None:
        return found
    source = _downloaded(weight_dtype) if name == DOWNLOAD else resolve(name)
    return _convert_once(source, weight_dtype) if weight_dtype in QUANTISED else source


def _published() -> Found | None:
    """The published checkpoint where a model folder has all of it under its own name, else None."""
    for root in host.model_folders():
        try:
            return find(root / _PUBLISHED)
        except (ValueError, OSError):  # not there, broken, or on a drive that is away
            continue
    return None


def _downloaded(weight_dtype: str) -> Found:
    """The published checkpoint, downloaded into the first model folder unless one has it. Where it will be converted
    there is a place for that first, and room if it is the same one. Raises as `download`."""
    there = _published()
    if there is not None:
        return there
    folder, step = host.model_folders()[0], host.progress()
    spare = _SHARES[weight_dtype] if weight_dtype in QUANTISED and _place() == folder else 0.0
    host.log("DiMOO: downloading %s into %s", REPO, folder)
    return find(download(REPO, folder, spare=spare, on_progress=lambda done, total: step(done, total, None)))


# Converting ---------------------------------------------------------------------------------------------------------


def _stem(source: Found) -> str:
    """What files made of a checkpoint are called: as it is listed, with a dash for each slash."""
    if source.path == NANO:
        return "DiMOO-nano"
    roots = [root for root in host.model_folders() if source.path != root and source.path.is_relative_to(root)]
    name = source.path.relative_to(roots[0]).as_posix() if roots else source.path.name
    return name.removesuffix(SUFFIX).replace("/", "-")


def _converted(stem: str, kind: str, source: Found | None) -> Found | None:
    """`source` where it is of that kind itself, else the file of that kind that was made of it and, where there is no
    source any more, of the one that was called so; None where there is none, or it was made of another."""
    if source is not None and source.formats == {QUANTISED[kind]}:
        return source
    for root in host.model_folders():
        path = root / f"{stem}-{kind}{SUFFIX}"
        try:
            found = find(path)
        except (ValueError, OSError):  # not there, broken, or on a drive that is away
            continue
        if found.path == path and found.formats == {QUANTISED[kind]} and _is_made_of(found, source):
            return found
    return None


def _is_made_of(found: Found, source: Found | None) -> bool:
    """Whether a converted file is of this checkpoint (None: of any). One that `convert` made on the command line does
    not say, and is taken where it is of the same shape."""
    if source is None:
        return True
    said = read_header(found.path)[0].get(SOURCE)
    return found.config_json == source.config_json if said is None else said == fingerprint(source.files)


def _convert_once(source: Found, kind: str) -> Found:
    """The checkpoint as a file of that kind, which is made unless another ComfyUI has made it meanwhile."""
    folder, stem = _place(), _stem(source)
    workshop, name = folder / _WORKSHOP, f"{stem}-{kind}{SUFFIX}"
    try:
        with folder_lock(workshop):
            there = _converted(stem, kind, source)
            if there is not None:
                return there
            for left in visible(workshop):  # by a process that was killed
                left.unlink()
            _convert(source, kind, workshop / name, folder / name)
    except OSError as error:
        raise ValueError(
            f"{folder / name} cannot be written ({error.strerror or error}); make room there, or close what uses the "
            "file, and run again."
        ) from None
    return find(folder / name)


def _place() -> Path:
    """The first model folder that can be written and is no checkpoint itself, which a further file would spoil."""
    folders = host.model_folders()
    for folder in folders:
        try:
            check_writable(folder)
        except ValueError:
            continue
        if not os.path.exists(folder / "config.json"):
            return folder
    raise ValueError(
        f"{' and '.join(map(str, folders))} cannot be written, and a converted checkpoint needs a place; make the "
        "folder writable, or name another one in extra_model_paths.yaml."
    )


def _convert(source: Found, kind: str, part: Path, target: Path) -> None:
    """Makes `target` by way of `part`, of which nothing is left whatever happens."""
    if target.is_dir() or _is_foreign(target):
        raise ValueError(
            f"{target} is in the way: this node did not make it; rename it or, if it is a checkpoint, choose it in the "
            "list."
        )
    host.log("DiMOO: converting %s to %s: %s", source.path, kind, target)
    try:
        convert(source, part, kind, source=fingerprint(source.files), on_step=host.progress())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _is_foreign(path: Path) -> bool:
    """Whether a file is whole and does not say that it was converted here."""
    try:
        return os.path.exists(path) and SOURCE not in read_header(path)[0]
    except ValueError:
        return False
