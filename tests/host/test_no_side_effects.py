"""Importing the pack and running its nodes opens no connection, starts no program, unpickles nothing and writes nothing
outside the host's folders.

In a process of its own, for Python's audit hooks cannot be taken off again.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

RUN = """
import os, socket, sys
from harness.in_process import import_pack, start_host

start_host(os.environ["COMFYUI_PATH"], "--cpu", "--use-pytorch-cross-attention")
import torch, comfy.sample, comfy.sd, folder_paths, latent_preview  # the host's part, which may do as it likes

FORBIDDEN = {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen", "os.system",
             "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class"}
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree"}

def watch(event, arguments):
    writes = event in CHANGES or (
        event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
    if event in FORBIDDEN or (writes and not str(arguments[0]).startswith(folder_paths.base_path)):
        message = f"{event} {arguments[:2]}"
        print("FORBIDDEN", message, flush=True)
        raise PermissionError(message)

sys.dont_write_bytecode = True
sys.addaudithook(watch)
if "attack" in sys.argv:
    socket.create_connection(("127.0.0.1", 9))

import_pack()
pack = sys.modules["pag_pack"].nodes
loader, inspect = pack.adm, pack.inspection
with torch.inference_mode():
    model, vae = loader.PAGADMLoader.execute(loader.SHIPPED).args
    positive, negative = (loader.PAGADMClassLabel.execute(model, label).args[0] for label in (7, -1))
    options = pack.guidance.PAGOptionsNode.execute(strength=0.5, rescale=0.5).args[0]
    latent = {"samples": torch.zeros(1, 3, 32, 32)}
    common = dict(seed=0, steps=2, cfg=2.0, pag_scale=3.0, layers="auto", sampler_name="euler", scheduler="normal",
                  positive=positive, negative=negative, latent_image=latent, options=options)
    print(pack.layers.PAGLayers.execute(model, "auto").args[0])
    patched = pack.guidance.PAGModelPatch.execute(model, 3.0, "m0").args[0]
    guider = pack.guidance.PAGGuider.execute(model, positive, negative, 2.0, 3.0, "m0").args[0]
    for node, arguments in ((pack.sampling.PAGKSampler, common), (inspect.PAGInspect, common | {"vae": vae})):
        assert torch.isfinite(node.execute(patched, **arguments).args[0]["samples"]).all()
    noise = comfy.sample.prepare_noise(latent["samples"], 0)
    guider.sample(noise, latent["samples"], comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.5, 0.0]))
print("ran", sorted(node.__name__ for node in vars(pack).values() if getattr(node, "define_schema", None)), flush=True)
os._exit(0)  # past the clean-up of the host's folders
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(TESTS)})


def test_the_nodes_reach_nothing_outside():
    done = run()
    assert "FORBIDDEN" not in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("PAGADMLoader", "PAGGuider", "PAGInspect", "PAGKSampler", "PAGLayers", "PAGModelPatch"):
        assert name in done.stdout


def test_the_watch_would_have_seen_it():
    done = run("attack")
    assert done.returncode != 0
    assert "FORBIDDEN socket." in done.stdout
