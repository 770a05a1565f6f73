"""The pack's own table of its templates, read where there is no ComfyUI, too."""

from __future__ import annotations

import importlib.util

from .server import PACK

_spec = importlib.util.spec_from_file_location("dimoo_templates", PACK / "nodes" / "templates.py")
TEMPLATES = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(TEMPLATES)
SLUGS: dict[str, str] = TEMPLATES.SLUGS
