"""ComfyUI nodes for Lumina-DiMOO. ComfyUI asks for `comfy_entrypoint`; everything else lies in `nodes/`."""

if __package__:  # a test runner may import this file alone, outside any package; then there is nothing to offer
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "web"  # the help pages, in web/docs; a script below it would run in every page, so there is none

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
