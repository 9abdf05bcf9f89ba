"""ADM models in the host: loading, sampling, labels, other nodes' patches, and what is refused."""

import json
import re
import zipfile
from pathlib import Path

import comfy.model_management
import comfy.samplers
import folder_paths
import numpy as np
import psutil
import pytest
import torch
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from pag_pack.nodes.guidance import PAGModelPatch
from pag_pack.nodes.host.models.adm_files import FOLDER, load_adm
from pag_pack.nodes.research.adm import SHIPPED, PAGADMClassLabel, PAGADMLoader
from pag_pack.pag_core.adm import ADMConfig, ADMHooks, ADMUNet
from safetensors.torch import save_file

import nodes

from .older import what_older_hosts_lack

SMALL = ADMConfig(32, (1, 2, 2), num_res_blocks=1, attention_levels=(1, 2), num_classes=10, head_channels=32)
FACTS = {
    "head_channels": "32",
    "label_dropout": "0.2",
    "class_names": json.dumps(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]),
}


def weights_of(config: ADMConfig) -> dict[str, torch.Tensor]:
    """Random weights under which every layer matters."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(w.shape, generator=generator) / w[0].numel() ** 0.5
        if w.dim() > 1
        else torch.randn(w.shape, generator=generator) * 0.1 + name.endswith("weight")
        for name, w in ADMUNet(config).state_dict().items()
    }


@pytest.fixture(scope="module")
def weights():
    return weights_of(SMALL)


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("adm") / "small.safetensors"
    save_file(weights, path, FACTS)
    return str(path)


@pytest.fixture
def model(path):
    """Without the clamp, which would hide differences: random weights leave the range of pictures."""
    return load_adm(path, clip_denoised=False)


def label(model, number: int) -> list:
    return PAGADMClassLabel.execute(model, number).result[0]


def sample(model, positive=None, negative=None, cfg=1.0, sampler="euler", steps=3, latent=None, size=16, batch=1):
    positive = label(model, 3) if positive is None else positive
    negative = label(model, -1) if negative is None else negative
    latent = {"samples": torch.zeros(batch, 3, size, size)} if latent is None else latent
    return nodes.common_ksampler(model, 5, steps, cfg, sampler, "normal", positive, negative, latent)[0]["samples"]


def picture(size: int = 16) -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_shipped_model_is_the_default_and_the_hosts_folders_are_listed(weights):
    for folder in ("adm", "checkpoints", "diffusion_models"):
        target = Path(folder_paths.models_dir) / folder / f"in-{folder}.pt"
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(weights, target)
    (Path(folder_paths.models_dir) / "adm" / "notes.txt").write_text("no model")
    choice = PAGADMLoader.define_schema().inputs[0]
    assert choice.default == SHIPPED
    assert {SHIPPED, "in-adm.pt", "in-checkpoints.pt", "in-diffusion_models.pt"} <= set(choice.options)
    assert all(name.endswith((".safetensors", ".pt")) for name in choice.options)


def test_a_file_that_is_gone_is_named_with_the_folders():
    with pytest.raises(ValueError, match=r"^ckpt_name is 'gone.pt', but there is no such file in .*models"):
        PAGADMLoader.execute("gone.pt")


def test_the_shipped_model_works_right_away():
    model, vae = PAGADMLoader.execute(SHIPPED).result
    assert model.model.adm_config.image_size == 64
    assert model.model.class_names == ["Smileys", "Animals", "Food", "People"]
    assert model.model.label_dropout > 0
    latent = nodes.EmptyLatentImage().generate(32, 32, 2)[0]
    samples = sample(model, label(model, 3), cfg=2.0, latent=latent)
    assert samples.shape == (2, 3, 32, 32)
    assert samples.abs().max() <= 1
    images = vae.decode(samples)
    assert images.shape == (2, 32, 32, 3)
    assert (vae.encode(images) - samples).abs().max() < 1e-5
    folder = Path(folder_paths.get_full_path(FOLDER, SHIPPED)).parent
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 16e6


def test_pt_and_safetensors_are_the_same_model(model, weights, tmp_path):
    torch.save(weights, tmp_path / "small.pt")
    assert torch.equal(sample(load_adm(str(tmp_path / "small.pt"), 32, clip_denoised=False)), sample(model))


def test_overrides_reach_the_network(path):
    loaded = load_adm(path, head_channels=16, qkv_order="new", noise_schedule="cosine").model.adm_config
    assert (loaded.head_channels, loaded.qkv_order, loaded.noise_schedule) == (16, "new", "cosine")


def truncated(source: Path, target: Path) -> str:
    target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    return str(target)


def test_an_unreadable_file_is_named_with_the_remedy(path, weights, tmp_path):
    torch.save(weights, tmp_path / "whole.pt")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    files = [
        truncated(Path(path), tmp_path / "half.safetensors"),
        truncated(tmp_path / "whole.pt", tmp_path / "half.pt"),
        str(tmp_path / "empty.safetensors"),
    ]
    for file in files:
        with pytest.raises(ValueError, match="download or copy it again") as error:
            load_adm(file)
        assert file in str(error.value)


class Payload:
    ran = False

    def __reduce__(self):
        return setattr, (Payload, "ran", True)


def test_a_pt_file_cannot_run_code(tmp_path):
    torch.save({"weights": Payload()}, tmp_path / "payload.pt")
    with pytest.raises(ValueError, match="contains only weights"):
        load_adm(str(tmp_path / "payload.pt"))
    assert not Payload.ran


def renamed_pt(path: Path, weights: dict) -> Path:
    torch.save(weights, path / "was.pt")
    return (path / "was.pt").rename(path / "a_pt.safetensors")


def renamed_safetensors(path: Path, weights: dict) -> Path:
    save_file(weights, path / "was.safetensors")
    return (path / "was.safetensors").rename(path / "a_safetensors.pt")


def lying_header(path: Path, _) -> Path:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (path / "lying.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return path / "lying.safetensors"


def endless_header(path: Path, _) -> Path:
    (path / "endless.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    return path / "endless.safetensors"


def stretched(path: Path, weights: dict) -> Path:
    """One number for a network of terabytes."""
    torch.save({name: torch.zeros(()).expand(*(2**20 if side > 3 else side for side in w.shape))
                for name, w in weights.items()}, path / "stretched.pt")
    return path / "stretched.pt"


def bomb(path: Path, weights: dict) -> Path:
    torch.save({"a": torch.zeros(20_000_000)}, path / "plain.pt")
    with zipfile.ZipFile(path / "plain.pt") as plain, \
            zipfile.ZipFile(path / "bomb.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    return path / "bomb.pt"


def old_format_claiming_terabytes(path: Path, _) -> Path:
    torch.save({"a": torch.zeros(200)}, path / "old.pt", _use_new_zipfile_serialization=False)
    content = (path / "old.pt").read_bytes()
    assert content.count(b"K\xc8") == 2  # the storage's size, and the tensor's
    (path / "old.pt").write_bytes(content.replace(b"K\xc8", b"\x8a\x06" + (2**44).to_bytes(6, "little")))
    return path / "old.pt"


@pytest.mark.parametrize("make", [renamed_pt, renamed_safetensors, lying_header, endless_header, stretched, bomb,
                                  old_format_claiming_terabytes], ids=lambda make: make.__name__)
def test_a_file_that_is_not_what_it_claims_is_refused_without_much_memory(make, weights, tmp_path):
    path = make(tmp_path, weights)
    before = psutil.Process().memory_info().rss
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_adm(str(path))
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


def test_what_is_no_adm_is_refused_by_path(tmp_path):
    other = str(tmp_path / "vae.safetensors")
    save_file({"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}, other)
    with pytest.raises(ValueError, match="not an ADM") as error:
        load_adm(other)
    assert other in str(error.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a state dict"):
        load_adm(str(tmp_path / "list.pt"))


def test_head_channels_that_do_not_divide_are_refused(path):
    with pytest.raises(ValueError, match="head_channels 48 does not divide"):
        load_adm(path, head_channels=48)


# --- the model in the host -----------------------------------------------------------------------------------------


def test_predicts_what_the_network_predicts(model, weights):
    """x̂0 = x − σ·ε with x scaled to unit variance, at the timestep of σ."""
    network = ADMUNet(SMALL).eval()
    network.load_state_dict(weights)
    sampling = model.model.model_sampling
    x, t, y = picture() * 5, torch.tensor([400]), torch.tensor([3])
    sigma = sampling.sigmas[t]
    comfy.model_management.load_models_gpu([model])
    got = model.model.apply_model(x, sigma, y=y, transformer_options={})
    expected = x - sigma * network(x / (sigma**2 + 1) ** 0.5, t, y)[:, :3]
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_sigmas_are_guided_diffusions(path, schedule):
    """get_named_beta_schedule of guided_diffusion/gaussian_diffusion.py."""
    if schedule == "linear":
        betas = np.linspace(0.0001, 0.02, 1000)
    else:
        alpha_bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    alphas = np.cumprod(1 - betas)
    sigmas = load_adm(path, noise_schedule=schedule).model.model_sampling.sigmas
    assert np.allclose(sigmas, ((1 - alphas) / alphas) ** 0.5, rtol=1e-4)


def test_half_precision_weights_are_computed_in_full(path, model, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda **_: torch.float16)
    half = load_adm(path, clip_denoised=False)
    assert half.model.get_dtype() == torch.float16
    assert half.model.diffusion_model.label_emb.weight.dtype == torch.float16
    assert half.model.get_dtype_inference() == torch.float32
    full = sample(model, steps=2)
    assert (sample(half, steps=2) - full).abs().max() < 0.02 * full.abs().max()


def test_the_host_can_make_fresh_copies(model):
    with what_older_hosts_lack(TypeError):
        fresh = model.clone(force_deepcopy=True)
    assert fresh.model is not model.model
    assert torch.equal(sample(fresh), sample(model))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddim", "uni_pc"])
def test_each_of_a_batch_is_what_it_is_alone_at_any_size(model, sampler):
    def drawn(*numbers: int) -> torch.Tensor:
        latent = {"samples": torch.zeros(len(numbers), 3, 18, 18), "batch_index": list(numbers)}
        return sample(model, cfg=3.0, sampler=sampler, latent=latent)

    torch.testing.assert_close(drawn(0, 1, 2), torch.cat([drawn(0), drawn(1), drawn(2)]),
                               rtol=0, atol=5e-3)  # rounding, times the first sigma of 157


def test_an_empty_latent_of_another_model_is_fitted(model):
    fitted = {"samples": torch.zeros(1, 3, 24, 16)}
    assert torch.equal(sample(model, latent=nodes.EmptyLatentImage().generate(16, 24, 1)[0]),
                       sample(model, latent=fitted))


def test_a_latent_of_another_model_is_refused_before_sampling(model):
    calls = count_calls(model)
    with pytest.raises(ValueError, match="images with 3 channels, but the latent has 4"):
        sample(model, latent={"samples": torch.ones(1, 4, 16, 16)})
    assert calls == []


def test_a_controlnet_is_refused_before_sampling(model, composed):
    with pytest.raises(ValueError, match="do not support ControlNet") as error:
        model.model.extra_conds(noise=picture(), device=torch.device("cpu"), control=object())
    composed.refuse("ControlNet on ADM", error.value)


def count_calls(model) -> list:
    calls = []

    def wrapper(apply, args):
        calls.append(args["input"].shape[0])
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(wrapper)
    return calls


# --- clamping ------------------------------------------------------------------------------------------------------


def wild(model):
    """A guidance that leaves the picture's range far behind."""
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 100)
    return model


def test_denoised_is_clamped_after_all_guidance(path):
    assert sample(wild(load_adm(path))).abs().max() <= 1
    assert sample(wild(load_adm(path, clip_denoised=False))).abs().max() > 1
    guided = PAGModelPatch.execute(load_adm(path), 50.0, "auto").result[0]
    assert sample(guided, cfg=7.0).abs().max() <= 1


def test_clamping_changes_nothing_inside_the_range(path):
    def inside(model):
        model.set_model_sampler_post_cfg_function(lambda args: args["denoised"].tanh() * 0.9)
        return model

    clipped, free = inside(load_adm(path)), inside(load_adm(path, clip_denoised=False))
    assert torch.equal(sample(clipped), sample(free))


# --- labels --------------------------------------------------------------------------------------------------------


def test_labels_steer_and_minus_one_is_what_no_label_is(model):
    clip_text = [[torch.ones(1, 77, 8), {"pooled_output": torch.ones(1, 8)}]]
    no_label = sample(model, label(model, -1))
    assert (sample(model, label(model, 3)) - sample(model, label(model, 4))).abs().max() > 1e-3
    assert torch.equal(sample(model, clip_text), no_label)
    zeroed = nodes.ConditioningZeroOut().zero_out(label(model, 3))[0]
    assert torch.equal(sample(model, zeroed), no_label)


def test_label_and_no_label_share_one_call(model):
    calls = count_calls(model)
    sample(model, cfg=3.0, steps=2)
    assert calls == [2, 2]


def test_masks_and_ranges_of_conditionings_choose_the_label(model):
    """At one step each half of the picture, and each part of the run, is what its label alone would draw."""
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1.0
    halves = nodes.ConditioningCombine().combine(*(
        nodes.ConditioningSetMask().append(label(model, number), mask, "default", 1.0)[0]
        for number, mask in ((1, left), (2, 1 - left))))[0]
    early, late = (nodes.ConditioningSetTimestepRange().set_range(label(model, number), *part)[0]
                   for number, part in ((1, (0.0, 0.5)), (2, (0.5, 1.0))))
    one, two = (sample(model, label(model, number), steps=1) for number in (1, 2))
    torch.testing.assert_close(sample(model, halves, steps=1), torch.cat([one[..., :8], two[..., 8:]], -1),
                               rtol=0, atol=5e-3)  # rounding, times the first sigma of 157
    assert torch.equal(sample(model, early + late, steps=1), one)
    assert (one - two).abs().max() > 1e-2


def test_the_average_of_conditionings_has_the_first_ones_label(model):
    mixed = nodes.ConditioningAverage().addWeighted(label(model, 1), label(model, 2), 0.5)[0]
    assert torch.equal(sample(model, mixed), sample(model, label(model, 1)))


@pytest.mark.parametrize("number", [10, 1000, -2])
def test_an_unknown_label_is_refused_with_the_known_ones(model, number):
    with pytest.raises(ValueError, match=rf"class label {number} .* -1 \(unconditional\) to 9\n0: zero\n1: one"):
        label(model, number)


def test_a_label_of_another_model_is_refused_before_sampling(model):
    with pytest.raises(ValueError, match="class label 77"):
        sample(model, [[torch.ones(1, 1, 1), {"class_label": 77}]])


def test_an_unconditional_model_takes_no_label(tmp_path):
    config = ADMConfig(**{**vars(SMALL), "num_classes": 0})
    save_file(weights_of(config), tmp_path / "u.safetensors", {"head_channels": "32"})
    model = load_adm(str(tmp_path / "u.safetensors"))
    torch.testing.assert_close(sample(model, label(model, -1), cfg=3.0), sample(model, label(model, -1)),
                               rtol=0, atol=1e-3)  # the negative is the same prediction
    with pytest.raises(ValueError, match="-1 only: the model is unconditional"):
        label(model, 0)


def test_no_label_is_warned_of_where_the_model_has_not_learnt_it(weights, tmp_path, caplog):
    save_file(weights, tmp_path / "c.safetensors", {"head_channels": "32"})
    model = load_adm(str(tmp_path / "c.safetensors"))
    label(model, 3)
    assert not caplog.records
    label(model, -1)
    assert "label dropout" in caplog.text


def test_spoilt_metadata_is_ignored(weights, tmp_path, caplog):
    save_file(weights, tmp_path / "m.safetensors", {**FACTS, "class_names": "{", "label_dropout": "?"})
    model = load_adm(str(tmp_path / "m.safetensors")).model
    assert (model.class_names, model.label_dropout) == ([], 0.0)
    assert "ignoring" in caplog.text


def test_a_model_of_another_kind_has_no_labels(model):
    other = model.clone()
    other.model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="expected a model from PAG ADM Loader, found Linear"):
        label(other, 0)


# --- other nodes ---------------------------------------------------------------------------------------------------


def test_the_hosts_pag_node_perturbs_the_middle_block(path, weights):
    """Eq. 10 at one step, computed by hand."""
    network = ADMUNet(SMALL).eval()
    network.load_state_dict(weights)

    class Perturbed(ADMHooks):
        def attention(self, q, k, v, heads, block):
            return v if block == ("middle", 0) else super().attention(q, k, v, heads, block)

    model = load_adm(path, clip_denoised=False)
    guided = PerturbedAttentionGuidance.execute(model, 3.0).result[0]
    out = sample(guided, steps=1)
    noise = comfy.sample.prepare_noise(torch.zeros(1, 3, 16, 16), 5)
    sigma = model.model.model_sampling.sigma_max
    y, t = torch.tensor([3]), torch.tensor([999.0])
    x = noise * (sigma**2 + 1) ** 0.5
    unit = x / (sigma**2 + 1) ** 0.5
    plain, perturbed = network(unit, t, y)[:, :3], network(unit, t, y, Perturbed())[:, :3]
    expected = x - sigma * (plain + 3 * (plain - perturbed))
    assert (plain - perturbed).abs().max() > 1e-2
    assert (out - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("layers", ["input.3, output.1", "m0", "all"])
def test_our_nodes_equal_the_hosts_mechanism(path, layers, cfg):
    model = load_adm(path, clip_denoised=False)
    ours = sample(PAGModelPatch.execute(model, 2.0, layers).result[0], cfg=cfg, batch=2)
    keys = [block for block, _ in model.model.diffusion_model.attention_layers()]
    if layers == "m0":
        keys = [("middle", 0)]
    elif layers != "all":
        keys = [("input", 3), ("output", 1)]

    def post_cfg(args):
        options = comfy.model_patcher.create_model_options_clone(args["model_options"])
        for key in keys:
            options = comfy.model_patcher.set_model_options_patch_replace(
                options, lambda q, k, v, extra: v, "attn1", *key
            )
        x, sigma = args["input"], args["sigma"]
        perturbed = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], x, sigma, options)[0]
        return args["denoised"] + 2.0 * (args["cond_denoised"] - perturbed)

    host = model.clone()
    host.set_model_sampler_post_cfg_function(post_cfg)
    host = sample(host, cfg=cfg, batch=2)
    assert (ours - host).abs().max() < 1e-4 * host.abs().max()
    assert (ours - sample(model, cfg=cfg, batch=2)).abs().max() > 1e-3 * host.abs().max()


def test_a_model_that_attends_in_its_middle_block_only_is_guided_there(tmp_path):
    config = ADMConfig(32, (1, 2), num_res_blocks=1, attention_levels=(), head_channels=32)
    save_file(weights_of(config), tmp_path / "middle.safetensors", {"head_channels": "32"})
    model = load_adm(str(tmp_path / "middle.safetensors"), clip_denoised=False)
    ours, host = (node.execute(model, 3.0, *layers).result[0] for node, layers in (
        (PAGModelPatch, ["auto"]), (PerturbedAttentionGuidance, [])))
    expected = sample(host, label(model, -1))
    assert (sample(ours, label(model, -1)) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_attention_patches_get_what_the_hosts_u_net_gives(model):
    seen = {}

    def replace(q, k, v, extra):
        seen.setdefault("replace", []).append((extra["block"], extra["block_index"], q.shape, q.is_contiguous()))
        seen["extra"] = extra
        return v

    def patch(q, context, value, extra):
        seen.setdefault("patch", []).append(extra["block"])
        return q, context, value

    def override(func, *args, **kwargs):
        seen.setdefault("override", []).append(kwargs["transformer_options"]["block"])
        return func(*args, **kwargs)

    plain = sample(model, steps=1)
    patched = model.clone()
    patched.set_model_attn1_patch(patch)
    patched.set_model_attn1_output_patch(lambda out, extra: out)
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    assert (sample(patched, steps=1) - plain).abs().max() < 1e-4
    layers = [block for block, _ in model.model.diffusion_model.attention_layers()]
    assert seen["patch"] == seen["override"] == layers

    patched.set_model_attn1_replace(replace, "middle", 0, 0)  # (block, number, index) wins
    patched.set_model_attn1_replace(lambda *_: pytest.fail("the longer key comes first"), "middle", 0)
    sample(patched, steps=1)
    assert seen["replace"] == [(("middle", 0), 0, (1, 16, 64), True)]
    extra = seen["extra"]
    assert (extra["n_heads"], extra["dim_head"], extra["activations_shape"]) == (2, 32, [1, 64, 4, 4])
    assert {"cond_or_uncond", "uuids", "sigmas", "original_shape", "transformer_index"} <= set(extra)
    assert not {"patches", "patches_replace"} & set(extra)


def test_patched_query_context_and_value_are_projected_apart(model):
    """With k and v of other tokens than q's: equal to replacing what each of them is made of."""
    layer = model.model.diffusion_model.middle_block[1]
    seen = {}

    def replace(q, k, v, extra):
        seen.update(q=q, k=k, v=v)
        return v

    def patch(n, context, value, extra):
        seen.setdefault("n", []).append(n)
        return n, context * 2, value * 3

    model.set_model_attn1_patch(patch)
    model.set_model_attn1_replace(replace, "middle", 0)
    sample(model, steps=1)
    n = seen["n"][[block for block, _ in model.model.diffusion_model.attention_layers()].index(("middle", 0))]
    for i, (name, factor) in enumerate((("q", 1), ("k", 2), ("v", 3))):
        assert torch.allclose(seen[name], layer.project_qkv(n * factor)[i], atol=1e-5)


def test_block_patches_fire_in_the_hosts_order(model):
    seen = []
    network = model.model.diffusion_model

    def note(name):
        def patch(h, options):
            seen.append((name, options["block"]))
            return h

        return patch

    def output(h, skip, options):
        seen.append(("output_block_patch", options["block"]))
        return h, skip

    def middle(args):
        seen.append(("middle_block_after_patch", args["transformer_options"]["block"]))
        assert {"h", "x", "emb", "context", "y", "timesteps"} <= set(args)
        return args

    def layer(layer, x, emb, context, options, size, *_):
        seen.append(("layer", type(layer).__mro__[1].__name__))
        from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed

        return forward_timestep_embed((layer,), x, emb, context, {**options, "patches": {}}, size)

    plain = sample(model, steps=1)
    model.set_model_input_block_patch(note("input_block_patch"))
    model.set_model_input_block_patch_after_skip(note("input_block_patch_after_skip"))
    model.set_model_output_block_patch(output)
    model.set_model_patch(middle, "middle_block_after_patch")
    assert torch.equal(sample(model, steps=1), plain)
    inputs = [(name, ("input", i)) for i in range(len(network.input_blocks))
              for name in ("input_block_patch", "input_block_patch_after_skip")]
    outputs = [("output_block_patch", ("output", i)) for i in range(len(network.output_blocks))]
    assert seen == [*inputs, ("middle_block_after_patch", ("middle", 0)), *outputs]

    seen.clear()
    model.set_model_patch((torch.nn.Module, layer), "forward_timestep_embed_patch")
    assert torch.equal(sample(model, steps=1), plain)
    kinds = [name for what, name in seen if what == "layer"]
    assert kinds.count("SpatialTransformer") == len(list(network.attention_layers()))
    assert kinds.count("TimestepBlock") > 0


@pytest.mark.parametrize(("node", "settings", "neutral"), [
    (FreeU_V2, (1.3, 1.4, 0.9, 0.2), (1.0, 1.0, 1.0, 1.0)),
    (HyperTile, (64, 2, 1, False), (256, 2, 1, False)),
    (PatchModelAddDownscale, (3, 2.0, 0.0, 0.5, True, "bicubic", "bicubic"),
     (3, 1.0, 0.0, 0.5, True, "bicubic", "bicubic")),
    (SelfAttentionGuidance, (0.5, 2.0), (0.0, 2.0)),
], ids=lambda value: getattr(value, "__name__", ""))
def test_guidance_and_speed_nodes_of_the_host_act_and_where_neutral_change_nothing(node, settings, neutral, model):
    def drawn(*values) -> torch.Tensor:
        return sample(node.execute(model, *values)[0], cfg=2.0, size=32)

    plain = sample(model, cfg=2.0, size=32)
    torch.testing.assert_close(drawn(*neutral), plain, rtol=0, atol=5e-3)
    assert (drawn(*settings) - plain).abs().max() > 0.1
