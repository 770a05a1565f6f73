"""ComfyUI nodes for Lumina-DiMOO. ComfyUI asks for `comfy_entrypoint`; everything else lies in `nodes/`."""

if __package__:  # a test runner may import this file alone, outside any package; then there is nothing to offer
    from .nodes import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
