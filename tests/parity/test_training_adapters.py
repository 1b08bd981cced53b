"""Adapters that learn against torch: diffusers' networks with PEFT's layers in them, the same factors, batch and noise.

The loss, the gradient of every factor, and every factor after 5 steps of AdamW; for a new word the same against rows
added to transformers' table, as diffusers' script trains them. What is written is opened by LyCORIS' modules and by
diffusers.
"""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import load_file

import sdjax
from sdjax.core import tree
from sdjax.train.architecture import Architecture
from sdjax.train.losses.denoising import Denoising
from sdjax.train.methods import lokr
from sdjax.train.methods.beside import as_weight, weight_shape
from sdjax.train.methods.dora import DoRA
from sdjax.train.methods.hypernetwork import Hypernetwork
from sdjax.train.methods.layers import chosen
from sdjax.train.methods.loha import LoHa
from sdjax.train.methods.lokr import LoKr
from sdjax.train.methods.lora import LoRA
from sdjax.train.methods.textual_inversion import TextualInversion
from tests.parity import families
from tests.parity.families import channels_first, relative
from tests.parity.test_hypernetwork import Module
from tests.train_fixtures import learnt

TOLERANCE = 1e-4  # the issue's
STEPS, RATE, DECAY = 5, 1e-3, 1e-2
RANK, ALPHA = 2, 3
MIXED = r"attentions\.0|resnets\.0\.conv1|conv_shortcut|downsamplers"  # linear, 1 x 1, 3 x 3, with a stride
BOTH = (("unet", MIXED), ("text_encoder", "transformers"))
CAPTIONS = ["a red circle", "a blue square above a red ring"]
SUFFIXES = {  # PEFT's names for what ours end in
    "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    "lora_magnitude_vector.default.weight": "dora_scale",
}


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other longer than these networks take, on a busy machine
    with families.quick_compiles():
        yield
    torch.set_num_threads(threads)


def opened(kind):
    """diffusers' pipeline; our parameters, objective and batch, and the ids of its captions."""
    pipeline, sd = families.opened(kind)
    base = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), {k: sd.params[k] for k in sd.params if k != "vae"})
    ids = {name: one.tokenizer.tokens(CAPTIONS) for name, one in sd.networks.spec.encoders.items()}
    batch = {
        "latents": families.noise(2, 8, 8, seed=1),
        "noise": families.noise(2, 8, 8, seed=2),
        "timesteps": np.array([700, 20]),
        "ids": ids,
        "keys": jax.random.split(jax.random.key(0), 2),
    }
    if "text_encoder_2" in ids:
        batch["time_ids"] = np.array([[64, 48, 8, 0, 32, 32], [32, 32, 0, 0, 32, 32]], np.float32)
    return pipeline, sd, base, Denoising(Architecture.of(sd.networks.spec)), batch


def torch_loss(pipeline, batch):
    """The mean squared error of diffusers' scripts (`train_text_to_image.py`, and for SDXL `.._sdxl.py`)."""
    scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
    x_0, noise = channels_first(batch["latents"]), channels_first(batch["noise"])
    t, ids = torch.from_numpy(batch["timesteps"]), {k: torch.from_numpy(v).long() for k, v in batch["ids"].items()}
    given = {}
    if "time_ids" in batch:
        told = [getattr(pipeline, name)(own, output_hidden_states=True) for name, own in ids.items()]
        context = torch.cat([one.hidden_states[-2] for one in told], -1)
        given["added_cond_kwargs"] = {"text_embeds": told[-1][0], "time_ids": torch.from_numpy(batch["time_ids"])}
    else:
        context = pipeline.text_encoder(ids["text_encoder"])[0]
    predicted = pipeline.unet(scheduler.add_noise(x_0, noise, t), t, context, **given).sample
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x_0, noise, t) if velocity else noise
    return torch.nn.functional.mse_loss(predicted, target)


def config_of(method, paths):
    """PEFT's for the layers of one component."""
    if isinstance(method, LoHa):
        return peft.LoHaConfig(r=RANK, alpha=ALPHA, target_modules=paths)
    if isinstance(method, LoKr):
        return peft.LoKrConfig(r=RANK, alpha=method.alpha, target_modules=paths, decompose_factor=method.factor)
    return peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=paths, use_dora=isinstance(method, DoRA))


def tensors_of(method, trainable, base):
    """What learns as a file has it, by component, path and suffix; alpha is none of it."""
    return {
        (component, path, suffix): one
        for component, own in jax.device_get(trainable).items()
        for path, factors in own.items()
        for suffix, one in method.tensors(factors, kernel_of(base, component, path)).items()
        if suffix != "alpha"
    }


def kernel_of(base, component, path):
    return next(leaf for at, leaf in tree.flatten(base[component]).items() if ".".join(at) == f"{path}.kernel")


def injected(pipeline, method, base):
    """PEFT's layers put into the pipeline's networks: their parameters by component, path and our suffix."""
    made = {}
    for component, own in chosen(base, method.layers).items():
        paths = {path.removeprefix("text_model."): path for path in own}
        network = getattr(pipeline, component).requires_grad_(False)
        peft.inject_adapter_in_model(config_of(method, list(paths)), network)
        for name, parameter in network.named_parameters():
            found = next((p for p in paths if name.startswith(f"{p}.") and parameter.requires_grad), None)
            if found is not None:
                suffix = name.removeprefix(f"{found}.")
                made[component, paths[found], SUFFIXES.get(suffix, suffix.removesuffix(".default"))] = parameter
    return made


@pytest.fixture
def clean():
    """families' pipelines are made once a process, and PEFT changes them: each test has its own again."""
    families.opened.cache_clear()
    yield
    families.opened.cache_clear()


def descend(method, objective, base, batch, trainable):
    """The loss and gradients at the start, and what has been learnt after STEPS steps."""
    optimiser = optax.adamw(RATE, weight_decay=DECAY)

    @jax.jit
    def step(own, state):
        loss, gradient = jax.value_and_grad(lambda own: objective.loss(method.join(own, base), batch)[0])(own)
        updates, state = optimiser.update(gradient, state, own)
        return loss, gradient, optax.apply_updates(own, updates), state

    state, first = optimiser.init(trainable), None
    for _ in range(STEPS):
        loss, gradient, trainable, state = step(trainable, state)
        first = first or (float(loss), gradient)
    return *first, trainable


def torch_descend(parameters, loss):
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    first = None
    for _ in range(STEPS):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        first = first or (value.item(), [one.grad.numpy().copy() for one in parameters])
        optimiser.step()
    return first


UNET = (("unet", MIXED),)
METHODS = {
    "LoRA": LoRA(RANK, ALPHA, BOTH),
    "DoRA": DoRA(RANK, ALPHA, UNET),
    "LoHa": LoHa(RANK, ALPHA, UNET),
    "LoKr": LoKr(RANK, RANK, UNET, factor=2),  # where both factors are whole alpha is ignored, but not by PEFT
}
WRITTEN = METHODS | {"LoKr": LoKr(RANK, ALPHA, UNET, factor=2), "rsLoRA": LoRA(RANK, ALPHA, UNET, rank_stabilised=True)}


@pytest.mark.parametrize("name", METHODS)
def test_five_steps(clean, name):
    method = METHODS[name]
    pipeline, _, base, objective, batch = opened("sd1")
    trainable = learnt(method.start(base, jax.random.key(0)))
    ours, theirs = tensors_of(method, trainable, base), injected(pipeline, method, base)
    assert ours.keys() == theirs.keys() and len(ours) > 60
    for key, parameter in theirs.items():
        parameter.data = torch.from_numpy(np.array(ours[key]).reshape(parameter.shape))
    loss, gradient, after = descend(method, objective, base, batch, trainable)
    expected, gradients = torch_descend([*theirs.values()], lambda: torch_loss(pipeline, batch))
    assert abs(loss / expected - 1) < 1e-5
    for found, wanted in ((gradient, dict(zip(theirs, gradients, strict=True))), (after, theirs)):
        own = tensors_of(method, found, base)
        wanted = {key: np.asarray(one.detach() if hasattr(one, "detach") else one) for key, one in wanted.items()}
        for key, one in wanted.items():
            assert np.abs(one).max() > 0 and relative(own[key].reshape(one.shape), one) < TOLERANCE, key


def test_the_start_is_lycoris():
    """Which factors are 0, and how widely the others are spread, in LyCORIS' modules and here."""
    layer = torch.nn.Linear(1024, 1024)
    kernel = np.zeros((1024, 1024), np.float32)
    for kind, module in ((LoRA, LoConModule), (LoHa, LohaModule), (LoKr, LokrModule)):
        own = kind(8, 8).factors(jnp.asarray(kernel), jax.random.key(0))
        ours = kind(8, 8).tensors({name: np.asarray(one) for name, one in own.items()}, kernel)
        theirs = module("m", layer, lora_dim=8, alpha=8).state_dict()
        theirs = {name: one for name, one in theirs.items() if not name.startswith("org_")}
        assert ours.keys() == theirs.keys()
        for name, one in theirs.items():
            assert ours[name].shape == one.shape
            if name != "alpha":
                assert abs(float(ours[name].std()) - float(one.std())) <= 0.1 * float(one.std())


def test_sizes_are_factorised_as_lycoris_does():
    from lycoris.functional.general import factorization

    for size in range(1, 400):
        for most in (-1, 1, 2, 3, 4, 7, 8, 16, 30):
            assert lokr.factorised(size, most) == factorization(size, most), (size, most)


@torch.no_grad()
@pytest.mark.parametrize("name", WRITTEN)
def test_lycoris_opens_what_is_written(name, tmp_path):
    """Its modules take the file's tensors, and a layer then gives what it gives with the kernel that `join` makes."""
    method = WRITTEN[name]
    _, _, base, _, _ = opened("sd1")
    trainable = learnt(method.start(base, jax.random.key(0)))
    held = load_file(method.write(trainable, base, tmp_path, {}))
    kind = {LoHa: LohaModule, LoKr: LokrModule}.get(type(method), LoConModule)
    how = dict(factor=method.factor) if isinstance(method, LoKr) else {}
    how |= dict(rs_lora=getattr(method, "rank_stabilised", False), weight_decompose=isinstance(method, DoRA))
    for path, factors in trainable["unet"].items():
        kernel = kernel_of(base, "unet", path)
        o, i, *size = weight_shape(kernel)
        layer = torch.nn.Conv2d(i, o, size) if size else torch.nn.Linear(i, o)
        layer.weight.data = weight(kernel)
        module = kind("m", layer, lora_dim=RANK, alpha=method.alpha, **how)
        prefix = f"lora_unet_{path.replace('.', '_')}."
        own = {name.removeprefix(prefix): one for name, one in held.items() if name.startswith(prefix)}
        assert own and not module.load_state_dict(own, strict=False).unexpected_keys
        module.apply_to()
        x = torch.randn(2, i, *size, generator=torch.Generator().manual_seed(0))
        product = torch.nn.functional.conv2d if size else torch.nn.functional.linear
        expected = product(x, weight(changed_kernel(method, kernel, factors)), layer.bias)
        assert relative(layer(x).numpy(), expected.numpy()) < 1e-5, path


def weight(kernel):
    """A kernel as torch has it."""
    return torch.from_numpy(np.ascontiguousarray(as_weight(np.asarray(kernel))))


def changed_kernel(method, kernel, factors):
    made = method.changed({"kernel": kernel}, factors)
    beside = made.get("low_rank")
    return made["kernel"] if beside is None else kernel + (beside.down * beside.scale[0]) @ beside.up


@torch.no_grad()
def test_diffusers_opens_a_lora(clean, tmp_path):
    """diffusers reads the U-Net's part of what is written, in kohya's names and, saved again, in PEFT's."""
    pipeline, _, base, objective, batch = opened("sd1")
    method = LoRA(RANK, ALPHA, (("unet", "attention"),))
    trainable = learnt(method.start(base, jax.random.key(0)))
    path = method.write(trainable, base, tmp_path, {})
    sdjax.load_adapter(path).save(tmp_path / "peft.safetensors", "peft", model=base)
    expected = float(objective.loss(method.join(trainable, base), batch)[0])
    plain = float(torch_loss(pipeline, batch))
    for name in ("adapter", "peft"):
        pipeline.load_lora_weights(str(tmp_path / f"{name}.safetensors"), adapter_name=name)
        assert abs(float(torch_loss(pipeline, batch)) / expected - 1) < 1e-5 < abs(plain / expected - 1)
        pipeline.unload_lora_weights()


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_new_word(clean, kind, tmp_path):
    """diffusers' script: tokens added to the tokenizer, rows to the table; of the table only these learn."""
    pipeline, sd, base, objective, batch = opened(kind)
    tokenizers = {name: one.tokenizer for name, one in sd.networks.spec.encoders.items()}
    captions = ["a <new> circle", "a <new>"]
    method = TextualInversion.of("<new>", ["red", "blue green"], next(iter(tokenizers.values())))
    batch = batch | method.rows(captions, tokenizers)
    trainable = method.start(base, jax.random.key(0))
    theirs, rows = dict(batch), {}
    theirs["ids"] = {name: own.copy() for name, own in batch["ids"].items()}
    for name, which in batch["words"].items():
        encoder = getattr(pipeline, name)
        inner = getattr(encoder, "text_model", encoder)
        table = inner.embeddings.token_embedding
        size = len(table.weight)
        theirs["ids"][name][which >= 0] = size + which[which >= 0]
        rows[name] = torch.nn.Parameter(torch.from_numpy(np.array(trainable[name])))
        table.forward = lambda ids, t=table, r=rows[name]: torch.cat([t.weight.detach(), r])[ids]
        for config in (encoder.config, inner.config, inner):  # where the text ends: by the id, and not by the largest
            if hasattr(config, "eos_token_id"):
                config.eos_token_id = tokenizers[name].eos
    loss, gradient, after = descend(method, objective, base, batch, trainable)
    expected, gradients = torch_descend([*rows.values()], lambda: torch_loss(pipeline, theirs))
    assert abs(loss / expected - 1) < 1e-5
    for name, wanted in zip(rows, gradients, strict=True):
        assert relative(gradient[name], wanted) < TOLERANCE and (np.abs(wanted).max(1) > 0).all()
        assert relative(after[name], rows[name].detach().numpy()) < TOLERANCE
    held = load_file(method.write(after, base, tmp_path, {}))
    if kind == "sd1":
        pipeline.load_textual_inversion(str(tmp_path / "adapter.safetensors"))
        ids = pipeline.tokenizer.convert_tokens_to_ids(["<new>", "<new>_1"])
        found = families.opened(kind)[0].text_encoder.get_input_embeddings().weight[ids]
        np.testing.assert_array_equal(found.detach().numpy(), held["<new>"].numpy())


def test_a_hypernetwork(clean, tmp_path):
    """A1111's modules before torch's layers for keys and values.

    The last bias of those for keys adds one number to all scores of a query, which softmax does not see: its gradient
    is rounding, of which AdamW makes steps of the whole rate.
    """
    pipeline, _, base, objective, batch = opened("sd1")
    pipeline.unet.requires_grad_(False), pipeline.text_encoder.requires_grad_(False)
    method = Hypernetwork(activation="silu")
    trainable = learnt(method.start(base, jax.random.key(0)))
    modules = torch.nn.ModuleDict()
    for name, layer in pipeline.unet.named_modules():
        if name.endswith(("to_k", "to_v")):
            key = f"{layer.in_features}.{name[-1]}".replace(".", "_")
            if key not in modules:
                modules[key] = Module(layer.in_features, (1, 2, 1), "silu", norm=False, output=False, dropout=0.0)
            layer.register_forward_pre_hook(lambda _, x, own=modules[key]: (own(x[0]),))

    def as_torch(tree):  # as it is written, in torch's order of axes
        held = load_file(method.write(tree, base, tmp_path, {}))
        return {name.replace(".", "_", 1): one for name, one in held.items()}

    modules.load_state_dict(as_torch(trainable))
    loss, gradient, after = descend(method, objective, base, batch, trainable)
    named = dict(modules.named_parameters())
    expected, gradients = torch_descend([*named.values()], lambda: torch_loss(pipeline, batch))
    assert abs(loss / expected - 1) < 1e-5
    ours, learned = as_torch(gradient), as_torch(after)
    for (name, parameter), wanted in zip(named.items(), gradients, strict=True):
        if name.endswith("k.linear.2.bias"):
            assert max(np.abs(wanted).max(), ours[name].abs().max()) < 1e-8
            continue
        assert np.abs(wanted).max() > 1e-6 and relative(ours[name], wanted) < TOLERANCE, name
        assert relative(learned[name], parameter.detach().numpy()) < TOLERANCE, name
