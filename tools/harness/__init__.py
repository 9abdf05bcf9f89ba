"""Code that the commands and the tests share: a ComfyUI to run in, a real server, and a client for it.

`host` and `errors` use only the standard library, so that the noxfile can import them; the rest runs in the environment
that `host` creates.
"""
