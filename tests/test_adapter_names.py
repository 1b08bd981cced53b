"""Every name that files give a module leads to that module, in every dialect, and what leads nowhere is told."""

import numpy as np
import pytest

import sdjax
from sdjax.adapters.module_names import DIFFUSERS, SGM, TEXT, blocks, is_text, nearest_module, pattern
from sdjax.adapters.names import DIALECTS
from sdjax.adapters.sgm import module_paths, sgm_modules
from sdjax.adapters.spelling import spell
from sdjax.adapters.table import name_tables
from sdjax.config.presets import PRESETS
from sdjax.core.tree import flatten
from sdjax.weights import CheckpointError
from tests.adapters import LAYER, SGM_SITE, SITE, SMALL, factors, kohya, published, written

COUNTS = {"sd15": 391, "sdxl": 1050}
MIDDLE = "mid_block.attentions.0.transformer_blocks"
FOUR = ("to_q", "to_k", "to_v", "to_out.0")
# By dialect: a U-Net module's down tensor from its path and SGM's, and a text encoder's from the component and path.
CLIP = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
UNET = {
    "kohya": lambda path, sgm: f"lora_unet_{path.replace('.', '_')}.lora_down.weight",
    "kohya-sgm": lambda path, sgm: f"lora_unet_{sgm.replace('.', '_')}.lora_down.weight",
    "diffusers-attn": lambda path, sgm: old(f"unet.{path}", "processor."),
    "diffusers-attn-bare": lambda path, sgm: old(path, "processor."),
    "diffusers": lambda path, sgm: f"unet.{path}.lora.down.weight",
    "peft": lambda path, sgm: f"unet.{path}.lora_A.weight",
    "peft-named": lambda path, sgm: f"unet.{path}.lora_A.style.weight",
    "peft-model": lambda path, sgm: f"base_model.model.{path}.lora_A.weight",
    "peft-named-model": lambda path, sgm: f"base_model.model.{path}.lora_A.default.weight",
    "peft-bare": lambda path, sgm: f"{path}.lora_A.weight",
    "comfy": lambda path, sgm: f"diffusion_model.{sgm}.lora_down.weight",
    "lycoris": lambda path, sgm: f"lycoris_{path.replace('.', '_')}.lora_down.weight",
    "omi": lambda path, sgm: f"unet.{sgm}.lora_down.weight",
    "oft": lambda path, sgm: f"oft_unet_{sgm.replace('.', '_')}.oft_blocks",
}
TEXTS = {
    "kohya": lambda name, path, many: (
        f"lora_te{number(name) if many else ''}_{path.replace('.', '_')}.lora_down.weight"
    ),
    "diffusers": lambda name, path, many: f"{name}.{path}.lora_linear_layer.down.weight",
    "peft": lambda name, path, many: f"{name}.{path}.lora_A.weight",
    "comfy": lambda name, path, many: f"text_encoders.{CLIP[name]}.transformer.{path}.lora_A.weight",
    "omi": lambda name, path, many: f"{CLIP[name]}.{path}.lora_down.weight",
}


def old(path: str, processor: str) -> str | None:
    """diffusers' name until 0.21, of attention's four projections."""
    site = next((path.removesuffix(f".{one}") for one in FOUR if path.endswith(f".{one}")), None)
    word = path.removesuffix(".0").rpartition(".")[2]
    return site and f"{site}.{processor}{word}_lora.down.weight"


def number(component: str) -> int:
    return 2 if component.endswith("_2") else 1


@pytest.mark.parametrize("family", COUNTS)
def test_every_module_has_its_name_in_each_dialect(family):
    params = published(family)
    table, modules = name_tables(params)["unet"], sgm_modules(params["unet"])
    assert len(modules) == COUNTS[family]
    for dialect, name in UNET.items():
        names = {path: name(path, sgm) for path, sgm in modules.items()}
        names = {path: one for path, one in names.items() if one}
        four = [path for path in modules if path.endswith(tuple(f".{one}" for one in FOUR))]
        assert len(names) == (len(four) if "attn" in dialect else COUNTS[family])
        spelled = spell(names.values())
        assert not spelled.unknown and spelled.dialect.name == dialect
        found = {path: table[spelled.known[one].module.name] for path, one in names.items()}
        assert found == {path: path for path in names}, dialect
        assert {one.module.part for one in spelled.known.values()} == {"unet"}


@pytest.mark.parametrize("family", COUNTS)
@pytest.mark.parametrize("dialect", TEXTS)
def test_every_module_of_the_text_encoders_has_its_name(family, dialect):
    params, tables = published(family), name_tables(published(family))
    encoders = [name for name in params if name.startswith("text")]
    for component in encoders:
        for path in module_paths(params[component]):
            (module, suffix) = DIALECTS[dialect].read(TEXTS[dialect](component, path, len(encoders) > 1))
            assert tables[component][module.name] == path and suffix == "lora_down.weight"
            assert module.part in (f"te{number(component)}", "te")
            assert tables[component][module.name.removeprefix("text_model_")] == path


@pytest.mark.parametrize("family", COUNTS)
def test_names_are_unique_and_the_vocabularies_share_none(family):
    modules = sgm_modules(published(family)["unet"])
    ours, theirs = ({one.replace(".", "_") for one in names} for names in (modules, modules.values()))
    assert len(ours) == len(theirs) == COUNTS[family] and not ours & theirs


def test_a_name_tells_its_vocabulary():
    assert not DIFFUSERS & SGM and not (DIFFUSERS | SGM) & TEXT
    for family in COUNTS:
        for path, sgm in sgm_modules(published(family)["unet"]).items():
            assert blocks(path.replace(".", "_")) == "diffusers" and blocks(sgm.replace(".", "_")) == "sgm"
        for path in module_paths(published(family)["text_encoder"]):
            assert is_text(path.replace(".", "_"))
    for known in DIFFUSERS | SGM | TEXT:
        assert pattern(known) == known


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("up_blocks_0_resnets_1_conv3", "up_blocks_0_resnets_1_conv2"),
        ("input_blocks_4_1_transformer_blocks_9_attn3_to_v", "input_blocks_4_1_transformer_blocks_9_attn2_to_v"),
        ("text_model_encoder_layers_11_mlp_fc", "text_model_encoder_layers_11_mlp_fc1"),
        ("x" * 5000, None),
        ("completely_other", None),
    ],
)  # fmt: skip
def test_the_nearest_module_keeps_its_numbers(name, near):
    assert blocks(name) is None and not is_text(name)
    found = nearest_module(name)
    assert found == near or (near and pattern(found).startswith(pattern(near)[:-3]))


# One LoRA in every dialect ------------------------------------------------


def small(dialect: str) -> dict[str, np.ndarray]:
    """Two modules of SD 1.x in a dialect, by hand."""
    (down, up), (text_down, text_up) = factors(320, 768), factors(768, 768, seed=1)
    underscored, layer = SITE.replace(".", "_"), LAYER.replace(".", "_")
    attn, self_attn = SITE.removesuffix(".to_k"), LAYER.removesuffix(".q_proj")
    words = {
        "kohya": (f"lora_unet_{underscored}.lora_%s.weight", f"lora_te_{layer}.lora_%s.weight"),
        "kohya-sgm": (f"lora_unet_{SGM_SITE.replace('.', '_')}.lora_%s.weight", f"lora_te_{layer}.lora_%s.weight"),
        "diffusers-attn": (
            f"unet.{attn}.processor.to_k_lora.%s.weight",
            f"text_encoder.{self_attn}.to_q_lora.%s.weight",
        ),
        "diffusers": (f"unet.{SITE}.lora.%s.weight", f"text_encoder.{LAYER}.lora_linear_layer.%s.weight"),
        "peft": (f"unet.{SITE}.lora_%s.weight", f"text_encoder.{LAYER}.lora_%s.weight"),
        "peft-named": (f"unet.{SITE}.lora_%s.default.weight", f"text_encoder.{LAYER}.lora_%s.default.weight"),
        "peft-model": (f"base_model.model.{SITE}.lora_%s.weight", f"base_model.model.{LAYER}.lora_%s.weight"),
        "peft-bare": (f"{SITE}.lora_%s.weight", f"{LAYER}.lora_%s.weight"),
        "comfy": (
            f"diffusion_model.{SGM_SITE}.lora_%s.weight",
            f"text_encoders.clip_l.transformer.{LAYER}.lora_%s.weight",
        ),
        "lycoris": (f"lycoris_{underscored}.lora_%s.weight", f"lycoris_{layer}.lora_%s.weight"),
        "omi": (f"unet.{SGM_SITE}.lora_%s.weight", f"clip_l.{LAYER}.lora_%s.weight"),
    }[dialect]
    sides = ("A", "B") if dialect.startswith("peft") else ("down", "up")
    unet, text = words
    return {unet % sides[0]: down, unet % sides[1]: up, text % sides[0]: text_down, text % sides[1]: text_up}


@pytest.mark.parametrize(
    "dialect",
    ["kohya", "kohya-sgm", "diffusers-attn", "diffusers", "peft", "peft-named", "peft-model", "peft-bare", "comfy",
     "lycoris", "omi"],
)  # fmt: skip
def test_one_lora_is_the_same_in_every_dialect(dialect, tmp_path):
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", small(dialect)))
    assert (adapter.dialect, adapter.family, adapter.kinds, adapter.ranks) == (dialect, "SD 1.x", ("LoRA",), (4,))
    bound = adapter.bind(published("sd15"))
    assert {(component, path) for component in bound for path in bound[component]} == {
        ("unet", SITE), ("text_encoder", LAYER)
    }  # fmt: skip
    for place, pair in (
        (bound["unet"][SITE], factors(320, 768)),
        (bound["text_encoder"][LAYER], factors(768, 768, seed=1)),
    ):
        assert list(place) == ["kernel"]
        down, up = place["kernel"].factors()
        assert np.array_equal(down, pair[0]) and np.array_equal(up, pair[1])  # alpha is missing: the scale is 1


# Traps --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name", "path"),
    [
        # diffusers' own converter makes an attention of SD 1's first doubling, which stands second in its block.
        ("sd15", "lora_unet_output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("sd15", "lora_unet_output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("sdxl", "lora_unet_output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("sd15", "lora_unet_input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("sd15", "lora_unet_input_blocks_1_0_emb_layers_1", "down_blocks.0.resnets.0.time_emb_proj"),
        ("sd15", "lora_unet_time_embed_0", "time_embedding.linear_1"),
        ("sd15", "lora_unet_out_2", "conv_out"),
        ("sd15", "lora_unet_input_blocks_0_0", "conv_in"),
        ("sdxl", "lora_unet_label_emb_0_0", "add_embedding.linear_1"),
        ("sdxl", "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj", f"{MIDDLE}.9.ff.net.0.proj"),
    ],
)  # fmt: skip
def test_names_that_others_get_wrong(family, name, path):
    (module, _) = DIALECTS["kohya-sgm"].read(f"{name}.alpha")
    assert name_tables(published(family))["unet"][module.name] == path


def test_both_vocabularies_in_one_file(tmp_path):
    """diffusers leaves the first one out then."""
    name = "lora_unet_input_blocks_2_1_transformer_blocks_0_attn2_to_v"
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(SMALL | {name: (320, 768)})))
    assert len(adapter.modules) == 3
    bound = adapter.bind(published("sd15"))
    assert "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v" in bound["unet"]


def test_one_module_by_two_names_is_refused(tmp_path):
    double = kohya(
        {
            name: (320, 768)
            for name in (f"lora_unet_{SITE}".replace(".", "_"), f"lora_unet_{SGM_SITE}".replace(".", "_"))
        }
    )
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", double))
    with pytest.raises(
        ValueError, match="a changes one module twice, by two names:\n +unet_input_blocks_1_1.* and unet_down_blocks"
    ):
        adapter.bind(published("sd15"))


def test_one_tensor_in_two_spellings_is_refused(tmp_path):
    tensors = small("peft")
    tensors |= {
        name.replace(".lora_A.", ".lora_A.other."): array for name, array in tensors.items() if "lora_A" in name
    }
    with pytest.raises(
        CheckpointError, match="holds one tensor twice, by two names: .*lora_A.weight and .*lora_A.other"
    ):
        sdjax.load_adapter(written(tmp_path / "a.safetensors", tensors))


def test_other_modules_keep_peft_words_in_the_file_of_diffusers(tmp_path):
    """Its converter renames the four projections of attention and no other module."""
    down, up = factors(320, 320, seed=2)
    more = {"unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.lora_A.weight": factors(320, 1280)[0],
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.lora_B.weight": up}  # fmt: skip
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", small("diffusers") | more))
    assert adapter.dialect == "diffusers" and len(adapter.modules) == 3 and down is not None
    adapter.bind(published("sd15"))


def test_matrices_and_1x1_convolutions_are_one(tmp_path):
    """SD 1's proj_in is a convolution, and files have either form."""
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    flat = kohya({name: (320, 320)})
    tall = {one: array.reshape(*array.shape, 1, 1) if array.ndim else array for one, array in flat.items()}
    bound = [
        sdjax.load_adapter(written(tmp_path / f"{i}.safetensors", one)).bind(published("sd15"))["unet"]
        for i, one in enumerate((flat, tall))
    ]
    weight = np.zeros((320, 320, 1, 1), np.float32)
    changed = [one["down_blocks.0.attentions.0.proj_in"]["kernel"].apply(weight, 1.0) for one in bound]
    assert np.array_equal(*changed) and changed[0].any()


def fake(layers: int, width: int = 1024, component: str = "text_encoder") -> dict:
    """A text encoder's tree of that many layers, one projection in each."""
    one = {"self_attn": {"q_proj": {"kernel": np.zeros((width, width), np.float16)}}}
    return {component: {"text_model": {f"encoder.layers.{i}": one for i in range(layers)}}}


def test_the_24th_layer_of_sd2_is_left_aside(tmp_path):
    names = {f"lora_te_text_model_encoder_layers_{i}_self_attn_q_proj": (1024, 1024) for i in (0, 22, 23)}
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(names)))
    assert adapter.family == "SD 2.x"
    with pytest.warns(UserWarning, match="a: 1 of 3 modules left aside, which this model lacks: te_.*layers_23"):
        assert len(adapter.bind(fake(23))["text_encoder"]) == 2
    with pytest.raises(ValueError, match="a changes 2 of its 3 modules .*:\n +te_.*layers_22_.* .nearest: .*layers_2_"):
        adapter.bind(fake(12))  # of a model of twelve layers the 24th is no leftover


def test_the_refiner_has_one_text_encoder_by_another_name(tmp_path):
    names = {"lora_te_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280)}
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(names)))
    assert adapter.family == "the SDXL refiner"
    assert list(adapter.bind(fake(2, 1280, "text_encoder_2"))) == ["text_encoder_2"]


def test_the_first_encoder_of_sdxl_has_no_projection(tmp_path):
    """OneTrainer writes one, of which no picture is made."""
    names = {
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280),
        "lora_te1_text_projection": (768, 768),
        "lora_te2_text_projection": (1280, 1280),
    }
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(names)))
    with pytest.warns(UserWarning, match="1 of 4 modules left aside, .*te1_text_projection"):
        assert len(adapter.bind(published("sdxl"))["text_encoder_2"]) == 2


# Adapters for other models ------------------------------------------------


@pytest.mark.parametrize(
    ("width", "model", "match"),
    [
        (2048, "sd15", r"a is for SDXL \(text 2048 wide\), and this model is SD 1.x \(text 768 wide\): 1 of its"),
        (1024, "sd15", r"a is for SD 2.x \(text 1024 wide\), and this model is SD 1.x"),
        (24, "sd15", r"a is for a model of its own kind \(text 24 wide\), and this model is SD 1.x"),
        (768, "sdxl", r"a is for SD 1.x \(text 768 wide\), and this model is SDXL \(text 2048 wide\): 0 of its"),
    ],
)  # fmt: skip
def test_another_family(width, model, match, tmp_path):
    names = {name: (outputs, width if "unet" in name else inputs) for name, (outputs, inputs) in SMALL.items()}
    if width == 2048:
        names = {name: (640 if "unet" in name else 768, one[1]) for name, one in names.items()}
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(names)))
    with pytest.raises(ValueError, match=match) as caught:
        adapter.bind(published(model))
    assert "\n" not in str(caught.value)


def test_a_module_of_another_width_in_a_model_of_the_family(tmp_path):
    names = SMALL | {"lora_unet_mid_block_attentions_0_proj_in": (1280, 1000)}
    adapter = sdjax.load_adapter(written(tmp_path / "a.safetensors", kohya(names)))
    with pytest.raises(
        ValueError,
        match=r"a does not fit this model: 2 of its 3 modules do, and unet_mid_block_.*proj_in: .*\[1280, 1000\]",
    ):
        adapter.bind(published("sd15"))


def test_modules_that_the_model_lacks(tmp_path):
    names = SMALL | {"lora_unet_down_blocks_3_attentions_0_proj_in": (1280, 1280)}
    path = written(tmp_path / "a.safetensors", kohya(names))
    with pytest.raises(
        ValueError,
        match="a changes 1 of its 3 modules that this model does not have:\n +unet_down_blocks_3_.*nearest: down_",
    ):
        sdjax.load_adapter(path).bind(published("sd15"))
    with pytest.warns(UserWarning, match="a: 1 of 3 modules left aside, which this model lacks: unet_down_blocks_3"):
        assert len(sdjax.load_adapter(path, strict=False).bind(published("sd15"))["unet"]) == 1


def test_families_are_those_of_the_presets():
    """The widths by which a model is told, of every preset's U-Net that has text."""
    from sdjax.adapters.families import CUSTOM, WIDTHS

    for name in ("sd15", "sd21", "sdxl", "sdxl_refiner"):
        assert WIDTHS[PRESETS[name].configs["unet"]["cross_attention_dim"]] != CUSTOM
    assert len(flatten(published("sd15")["unet"])) == 686
