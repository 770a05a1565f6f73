"""A real ComfyUI for the tests, the demo and the browser checks: start it, talk to it, feed it workflows."""
