"""Importing the pack and running its nodes opens no connection, starts no program, unpickles nothing and writes nothing
outside the host's folders.

In a process of its own, for Python's audit hooks cannot be taken off again.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"

WATCH = """
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
"""
RUN = """
import asyncio, os, sys
from harness.in_process import import_pack, start_host

start_host(os.environ["COMFYUI_PATH"], "--cpu", "--use-pytorch-cross-attention")
import torch, comfy.sample, comfy.sd, folder_paths, latent_preview  # the host's part, which may do as it likes
from comfy.ldm.models.autoencoder import AutoencoderKL
""" + WATCH + """
import_pack()
pack = sys.modules["pag_pack"].nodes
waiting = {node.__name__ for node in asyncio.run(pack.PAGExtension().get_node_list())}


def run(node, *arguments, **named):
    waiting.discard(node.__name__)
    return node.execute(*arguments, **named).args


with torch.inference_mode():
    model, vae = run(pack.PAGADMLoader, pack.research.adm.SHIPPED)
    positive, negative = (run(pack.PAGADMClassLabel, model, label)[0] for label in (3, -1))
    (options,) = run(pack.PAGOptionsNode, strength=0.5, rescale=0.5)
    latent = {"samples": torch.zeros(1, 3, 32, 32)}
    common = dict(seed=0, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", positive=positive,
                  negative=negative, latent_image=latent, options=options)
    print(run(pack.PAGLayers, model, "auto")[0])
    (patched,) = run(pack.PAGModelPatch, model, 3.0, "m0")
    results = [run(node, patched, pag_scale=3.0, layers="auto", **more, **common)[0]["samples"]
               for node, more in ((pack.PAGKSampler, {}), (pack.PAGInspect, {"vae": vae}))]
    results += run(pack.PAGGrid, model, scales="0, 3", layer_selections="m0", perturbations="", vae=vae, **common)

    once = {name: [value] for name, value in common.items()}
    _, grids, _ = run(pack.PAGHeadSearch, **once, model=[model], pag_scale=[3.0], layers=["m0"], score=["eye"],
                      seeds=[1], vae=[vae])
    results.append(grids)

    (operator,) = run(pack.PAGMeasurement, "super_resolution")
    measurement, _ = run(pack.PAGMeasure, torch.rand(1, 32, 32, 3), operator, 0.05, 0)
    (dps,) = run(pack.PAGDPSSampler, measurement, operator, 1.0)
    small = {"embed_dim": 4, "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}}
    of_latents = comfy.sd.VAE(sd=AutoencoderKL(**small).state_dict(), config={"params": small})
    run(pack.PAGPSLDSampler, measurement, operator, of_latents, 0.1, 0.01)
    (guider,) = run(pack.PAGGuider, model, positive, negative, 2.0, 3.0, "m0")
    try:
        run(pack.PAGAVGuider, model, positive, negative, *(3.0, 1.0, 3.0, 0.5) * 2, "auto")
    except ValueError as refusal:
        print(refusal)  # no model of video and sound is small enough to come with the pack
    noise = comfy.sample.prepare_noise(latent["samples"], 0)
    results += [guider.sample(noise, latent["samples"], sampler, torch.tensor([1.0, 0.5, 0.0]))
                for sampler in (comfy.samplers.sampler_object("euler"), dps)]

    results.append(run(pack.PAGSDSOptimizer, guider, latent, 0, 2, 0.1, "random")[0]["samples"])
    gradient, _ = run(pack.PAGSDSGradient, guider, latent, 0)
    results += run(pack.PAGSDSImageGradient, torch.rand(1, 32, 32, 3), vae, gradient)
    assert all(torch.isfinite(result).all() for result in results)
print("not run:", sorted(waiting), flush=True)
os._exit(0)  # past the clean-up of the host's folders
"""


ATTACK = "import socket, sys" + WATCH + "socket.create_connection(('127.0.0.1', 9))"


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(TOOLS)})


@pytest.mark.slow
def test_the_nodes_reach_nothing_outside():
    done = run(RUN)
    assert "FORBIDDEN" not in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not run: []" in done.stdout, "every node is to be run here"


def test_the_watch_would_have_seen_it():
    done = run(ATTACK)
    assert done.returncode != 0
    assert "FORBIDDEN socket." in done.stdout
