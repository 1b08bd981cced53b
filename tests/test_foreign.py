"""Settings that other programs keep as JSON: read as they mean them, or refused by the program's name."""

import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sdjax
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.spacing import SCHEDULES
from sdjax.metadata.foreign import names

COMFY = {"noise_source": "torch_cpu", "prompt_style": "comfy", "preset": "comfy"}
CAT = {"prompt": "a cat", "negative_prompt": "dog", "steps": 20, "seed": 1, "guidance_scale": 7.0}
SIZE = {"width": 512, "height": 768}


def image(**texts) -> Image.Image:
    made = Image.new("RGB", (512, 768))
    made.info.update({name: text if isinstance(text, str) else json.dumps(text) for name, text in texts.items()})
    return made


def read(**texts) -> tuple[dict, str]:
    """(Settings, what the one warning says)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sdjax.read_settings(image(**texts))
    assert len(caught) <= 1 and all(one.filename == __file__ for one in caught)
    return found, str(caught[0].message) if caught else ""


# SwarmUI ------------------------------------------------------

SWARM = {
    "prompt": "a cat", "negativeprompt": "dog", "model": "sd_xl_base_1.0", "seed": 1, "steps": 20,
    "cfgscale": 7.0, "aspectratio": "Custom", "width": 512, "height": 768, "sampler": "dpmpp_2m", "scheduler": "karras",
    "swarm_version": "0.9.3.1",
}  # fmt: skip


def test_swarmui():
    found, warned = read(parameters={"sui_image_params": SWARM, "sui_extra_data": {"date": "2025-01-25"}})
    assert found == {**COMFY, **CAT, **SIZE, "sampler": "dpmpp_2m", "schedule": "karras"} and not warned


def test_what_swarmui_does_not_say():
    """Its own defaults, and those of `generate`."""
    found, _ = read(parameters={"sui_image_params": {"prompt": "a cat", "seed": 1, "steps": 20}})
    assert found == {**COMFY, "prompt": "a cat", "steps": 20, "seed": 1, "sampler": "euler", "schedule": "normal"}


def test_what_of_swarmui_is_not_done():
    changed = {"loras": ["x"], "variationseedstrength": 0.5, "sampler": "euler_ancestral", "clipstopatlayer": -2}
    found, warned = read(parameters={"sui_image_params": SWARM | changed})
    assert found["clip_skip"] == "comfy:-2"
    assert "SwarmUI: loras, variationseedstrength is not done here" in warned and "noise" in warned
    with pytest.raises(ValueError, match="SwarmUI: its sampler 'seeds_2' has no counterpart"):
        read(parameters={"sui_image_params": SWARM | {"sampler": "seeds_2"}})


# ComfyUI ------------------------------------------------------

GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 1, "steps": 20, "cfg": 7, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
}  # fmt: skip


def graph(nodes: dict, **inputs) -> dict:
    """GRAPH with other nodes, and other inputs of the sampler."""
    made = json.loads(json.dumps({**GRAPH, **nodes}))
    made["3"]["inputs"].update(inputs)
    return made


def test_comfyui():
    found, warned = read(prompt=GRAPH, workflow={"nodes": [], "links": []})
    assert found == {**COMFY, **CAT, **SIZE, "sampler": "dpmpp_2m", "schedule": "karras"} and not warned
    assert read(parameters=GRAPH)[0] == found  # some nodes save it under that name


def test_comfyuis_values_by_links_and_nodes_on_the_way():
    nodes = {
        "20": {"class_type": "PrimitiveInt", "inputs": {"value": 9}},
        "21": {"class_type": "StringConstant", "inputs": {"string": "a bird"}},
        "22": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["23", 1]}},
        "23": {"class_type": "LoraLoader", "inputs": {"lora_name": "x", "model": ["4", 0], "clip": ["4", 1]}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["21", 0], "clip": ["22", 0]}},
        "30": {"class_type": "KSampler", "inputs": {}},  # of nothing that is saved
    }
    found, warned = read(prompt=graph(nodes, seed=["20", 0], model=["23", 0]))
    assert (found["seed"], found["prompt"], found["clip_skip"]) == (9, "a bird", "comfy:-2")
    assert "ComfyUI: LoraLoader has no counterpart here and is left out" in warned


def test_comfyuis_advanced_and_custom_samplers():
    advanced = graph({}, noise_seed=1, add_noise="enable", start_at_step=0, end_at_step=10_000)
    del advanced["3"]["inputs"]["denoise"], advanced["3"]["inputs"]["seed"]
    advanced["3"]["class_type"] = "KSamplerAdvanced"
    want, _ = read(prompt=GRAPH)
    assert read(prompt=advanced)[0] == want
    links = {"positive": ["6", 0], "negative": ["7", 0], "model": ["4", 0], "cfg": 7.0}
    nodes = {
        "3": {
            "class_type": "SamplerCustom",
            "inputs": {**links, "add_noise": True, "noise_seed": 1, "sampler": ["40", 0], "sigmas": ["41", 0],
                       "latent_image": ["5", 0]},
        },
        "40": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "dpmpp_2m"}},
        "41": {"class_type": "BasicScheduler", "inputs": {"scheduler": "karras", "steps": 20, "denoise": 1.0}},
        "42": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
        "43": {"class_type": "CFGGuider", "inputs": links},
    }  # fmt: skip
    assert read(prompt={**GRAPH, **nodes})[0] == want
    nodes["41"] = {
        "class_type": "AlignYourStepsScheduler",
        "inputs": {"model_type": "SDXL", "steps": 20, "denoise": 1.0},
    }
    assert read(prompt={**GRAPH, **nodes})[0] == want | {"schedule": "ays_sdxl"}
    inner = {
        "noise": ["42", 0],
        "guider": ["43", 0],
        "sampler": ["40", 0],
        "sigmas": ["41", 0],
        "latent_image": ["5", 0],
    }
    nodes["3"] = {"class_type": "SamplerCustomAdvanced", "inputs": inner}
    assert read(prompt={**GRAPH, **nodes})[0] == want | {"schedule": "ays_sdxl"}


def test_comfyuis_two_texts_of_an_sdxl():
    inputs = {"text_l": "a cat", "text_g": "a photo", "width": 1024, "height": 2048, "crop_w": 1, "crop_h": 2}
    inputs |= {"target_width": 512, "target_height": 768, "clip": ["4", 1]}
    found, _ = read(prompt=graph({"6": {"class_type": "CLIPTextEncodeSDXL", "inputs": inputs}}))
    assert (found["prompt"], found["prompt_2"]) == ("a cat", "a photo")
    assert (found["original_size"], found["crop"], found["target_size"]) == ([2048, 1024], [2, 1], [768, 512])
    negative = [found[f"negative_{name}"] for name in ("original_size", "crop", "target_size")]
    assert negative == [[768, 512], [0, 0], [768, 512]]  # CLIPTextEncode's: SDXL.encode_adm takes the latents' own
    both = {"6": {"class_type": "CLIPTextEncodeSDXL", "inputs": inputs}}
    both["7"] = {"class_type": "CLIPTextEncodeSDXL", "inputs": inputs | {"text_l": "dog", "text_g": "dog", "width": 64}}
    found, _ = read(prompt=graph(both))
    assert (found["negative_prompt"], found["negative_original_size"]) == ("dog", [2048, 64])
    assert "negative_prompt_2" not in found and found["original_size"] == [2048, 1024]


def test_comfyuis_control_nets_have_two_outputs():
    links = {"positive": ["6", 0], "negative": ["7", 0]}
    nodes = {"60": {"class_type": "ControlNetApplyAdvanced", "inputs": links}}
    for outputs, prompts in (((0, 1), ("a cat", "dog")), ((1, 0), ("dog", "a cat"))):
        found, warned = read(prompt=graph(nodes, positive=["60", outputs[0]], negative=["60", outputs[1]]))
        assert (found["prompt"], found["negative_prompt"]) == prompts and "ControlNetApplyAdvanced" in warned
    with pytest.raises(ValueError, match="prompt comes from ControlNetApplyAdvanced"):
        read(prompt=graph(nodes, positive=["60", 2]))


def test_comfyuis_reroutes_are_passed():
    """Wherever they stand: before latents, texts, models and numbers."""
    nodes = {
        "50": {"class_type": "Reroute", "inputs": {"": ["5", 0]}},
        "51": {"class_type": "Reroute", "inputs": {"": ["50", 0]}},
        "52": {"class_type": "Reroute", "inputs": {"": ["53", 0]}},
        "53": {"class_type": "PrimitiveInt", "inputs": {"value": 9}},
        "54": {"class_type": "Reroute", "inputs": {"": ["6", 0]}},
    }
    links = {"latent_image": ["51", 0], "seed": ["52", 0], "positive": ["54", 0]}
    found, warned = read(prompt=graph(nodes, **links))
    assert found == read(prompt=GRAPH)[0] | {"seed": 9} and not warned


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (graph({}, denoise=0.5), "begins from latents .denoise 0.5"),
        (graph({"5": {"class_type": "VAEEncode", "inputs": {}}}), "the latents come from VAEEncode .node 5."),
        (graph({}, sampler_name="seeds_2"), "its sampler 'seeds_2' has no counterpart"),
        (graph({}, scheduler="gits"), "its scheduler 'gits' has no counterpart"),
        (graph({"8": {"class_type": "KSampler", "inputs": {"latent_image": ["3", 0]}}}), "several samplers in turn"),
        (graph({"6": {"class_type": "ConditioningCombine", "inputs": {}}}), "prompt comes from ConditioningCombine"),
        (graph({}, positive=["6", -1]), "KSampler .node 3. has no positive"),
        (graph({"5": {"class_type": "Reroute", "inputs": {"": ["5", 0]}}}), "latent_image .* more than 64 nodes"),
        (graph({}, seed=["99", 0]), "a link leads to node '99', which is not in the graph"),
        (graph({}, steps="many"), "steps must be a number, not 'many'"),
        (graph({}, steps=10**9), "steps must be from 1 to 10,000"),
        ({"1": {"class_type": "LoadImage", "inputs": {}}}, "no sampler that is known .*LoadImage"),
        ({"nodes": [], "links": []}, "the editor's workflow alone.*Export .API."),
    ],
)
def test_comfyuis_graphs_that_cannot_be_told(changed, message):
    with pytest.raises(ValueError, match=rf"ComfyUI: .*{message}"):
        read(prompt=changed)


def test_plain_words_beside_a_graph_come_first():
    """Some nodes write A1111's text as well: it is right even where the graph cannot be followed."""
    line = "bird\nSteps: 9, Sampler: Euler, Seed: 3, Size: 8x8, Version: ComfyUI"
    found, _ = read(parameters=line, prompt=graph({}, denoise=0.5), workflow={"nodes": []})
    assert found["prompt"] == "bird" and found["preset"] == "comfy"
    assert read(parameters="a bird", prompt=GRAPH)[0]["prompt"] == "a cat"


def test_a_workflow_alone_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"ComfyUI: the picture holds the editor's workflow alone.*Export \(API\)"):
        read(workflow={"nodes": [], "links": []})


def test_hostile_graphs_come_to_an_end():
    circle = graph({"6": {"class_type": "Reroute", "inputs": {"": ["6", 0]}}}, seed=["20", 0])
    circle["20"] = {"class_type": "PrimitiveInt", "inputs": {"value": ["20", 0]}}
    wide = graph({str(i): {"class_type": "LoraLoader", "inputs": {"a": [str(i + 1), 0]}} for i in range(10, 5_000)})
    wide["9"]["inputs"]["more"] = ["10", 0]
    deep = '{"3": ' * 100_000
    for one in (circle, wide, deep, '{"3": {"class_type": "KSampler", "inputs": {"seed": ' + "9" * 5000 + "}}}"):
        with pytest.raises(ValueError, match="ComfyUI|JSON"):
            read(prompt=one)


# Fooocus ------------------------------------------------------

FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)", "base_model": "juggernautXL", "base_model_hash": "x", "full_prompt": ["a cat"],
    "guidance_scale": 7, "loras": [], "metadata_scheme": "fooocus", "negative_prompt": "dog", "performance": "Speed",
    "prompt": "a cat", "resolution": "(512, 768)", "sampler": "dpmpp_2m", "scheduler": "karras", "seed": "1",
    "sharpness": 2, "steps": 20, "styles": "['Fooocus V2']", "version": "Fooocus v2.5.5",
}  # fmt: skip
LOG = {
    "Prompt": "a cat", "Negative Prompt": "dog", "Performance": "Speed", "Resolution": "(512, 768)",
    "Guidance Scale": 7,
    "ADM Guidance": "(1.5, 0.8, 0.3)", "Base Model": "juggernautXL", "Sampler": "dpmpp_2m", "Scheduler": "karras",
    "Seed": "1", "Version": "Fooocus v2.1.8", "Steps": 20, "LoRA 1": "x : 0.5",
}  # fmt: skip


@pytest.mark.parametrize("told", [FOOOCUS, LOG])
def test_fooocus(told):
    found, warned = read(parameters=told, fooocus_scheme="fooocus")
    assert found == {**COMFY, **CAT, **SIZE, "sampler": "dpmpp_2m", "schedule": "karras"}
    assert "Fooocus: Fooocus' own styles, sharpness and ADM guidance are not done" in warned
    assert ("LoRA 1" in warned) == (told is LOG)


def test_fooocus_in_exif():
    assert read(UserComment=FOOOCUS)[0]["seed"] == 1


def test_fooocus_other_scheme():
    text = (
        "cinematic a cat\nNegative prompt: photo, dog\nSteps: 20, Sampler: DPM++ 2M Karras, Seed: 1, Size: 512x768, "
        "CFG scale: 7, Sharpness: 2, Scheduler: karras, Raw prompt: a cat, Raw negative prompt: dog, "
        "Version: Fooocus v2.5.5"
    )
    found, warned = read(parameters=text, fooocus_scheme="a1111")
    assert found == {**COMFY, **CAT, **SIZE, "sampler": "dpmpp_2m", "schedule": "karras"} and "Fooocus" in warned


# InvokeAI ------------------------------------------------------

INVOKE = {
    "generation_mode": "txt2img", "positive_prompt": "a cat", "negative_prompt": "dog", "width": 512, "height": 768,
    "seed": 1, "rand_device": "cpu", "cfg_scale": 7, "cfg_rescale_multiplier": 0.5, "steps": 20, "clip_skip": 1,
    "scheduler": "dpmpp_2m_k", "model": {"name": "x", "hash": "blake3:1"}, "controlnets": [], "loras": [],
}  # fmt: skip


def test_invokeai():
    found, warned = read(invokeai_metadata=INVOKE, invokeai_graph={"nodes": {}})
    own = {"noise_source": "torch_cpu", "guidance_rescale": 0.5, "clip_skip": "diffusers:1"}
    assert found == {**CAT, **SIZE, **own, "sampler": "dpmpp_2m", "schedule": "karras"} and not warned
    changed = {"scheduler": "euler_a", "loras": [{"lora": "x"}], "positive_prompt": "a (cat)1.3 house++"}
    found, warned = read(invokeai_metadata=INVOKE | changed)
    assert found["sampler"] == "euler_ancestral" and "schedule" not in found
    assert all(word in warned for word in ("loras is not done", "compel", "noise"))
    with pytest.raises(ValueError, match="InvokeAI: 'img2img' is made from another picture"):
        read(invokeai_metadata=INVOKE | {"generation_mode": "img2img"})


def test_invokeais_style_is_the_second_encoders_prompt():
    """compel.py, SDXLCompelPromptInvocation: an empty one is none."""
    told = {"generation_mode": "sdxl_txt2img", "positive_style_prompt": "a photo", "negative_style_prompt": " "}
    found, _ = read(invokeai_metadata=INVOKE | told)
    assert (found["prompt"], found["prompt_2"]) == ("a cat", "a photo") and "negative_prompt_2" not in found
    assert "prompt_2" not in read(invokeai_metadata=INVOKE | told | {"positive_style_prompt": "a cat"})[0]


def test_invokeai_before_3():
    told = {
        "type": "txt2img",
        "prompt": [{"prompt": "a cat [dog]", "weight": 1.0}],
        "sampler": "k_euler_a",
        "steps": 20,
    }
    told |= {"cfg_scale": 7.0, "seed": 1, **SIZE}
    want = {**CAT, **SIZE, "noise_source": "torch_cuda", "sampler": "euler_ancestral"}
    found, _ = read(**{"sd-metadata": {"app_id": "invoke-ai/InvokeAI", "model_weights": "x", "image": told}})
    assert found == want
    assert read(Dream='"a cat [dog]" -s 20 -S 1 -W 512 -H 768 -C 7.0 -A k_euler_a')[0] == want
    assert read(Dream='"a cat [dog]" -s20 -S1 -W512 -H768 -C7.0 -A k_euler_a')[0] == want
    for line in ('"a cat', "", '"a cat" -s many', '"a cat" -A k_none', '"a" -I x.png -s 20'):
        with pytest.raises(ValueError, match="InvokeAI|holds no settings"):
            read(Dream=line)


# The others ------------------------------------------------------


def test_novelai():
    told = {"prompt": "a cat", "uc": "dog", "steps": 20, "scale": 7.0, "seed": 1, "sampler": "k_dpmpp_2m"}
    told |= {"noise_schedule": "karras", "cfg_rescale": 0.0, "sm": False}
    found, warned = read(Software="NovelAI", Description="a cat", Comment=told)
    assert found == {**CAT, **SIZE, "sampler": "dpmpp_2m", "schedule": "karras", "preset": "a1111"}
    assert "NovelAI's seeds mean noise that is not known" in warned
    found, warned = read(UserComment={**told, "width": 64, "height": 64, "prompt": "{a cat}"})
    assert found["width"] == 64 and "{word}" in warned
    for people, left_out in (([], False), ([{"char_caption": "girl"}], True)):
        told["v4_prompt"] = {"caption": {"base_caption": "a cat", "char_captions": people}}
        assert ("char_captions" in read(Software="NovelAI", Comment=told)[1]) is left_out


def test_novelais_old_pictures():
    """The prompt is in the description alone, as A1111's images.py (read_info_from_image) knows them."""
    told = {"steps": 20, "sampler": "k_euler_ancestral", "seed": 1, "strength": 0.7, "noise": 0.2, "scale": 7.0}
    found, _ = read(Software="NovelAI", Title="AI generated image", Description="a cat", Comment=told | {"uc": "dog"})
    assert found == {**CAT, **SIZE, "sampler": "euler_ancestral", "schedule": "normal", "preset": "a1111"}


EASY = {
    "prompt": "a cat", "negative_prompt": "dog", "seed": 1, "use_stable_diffusion_model": "/x/sd-v1-4",
    "clip_skip": True,
    "use_vae_model": "", "sampler_name": "euler_a", **SIZE, "num_inference_steps": 20, "guidance_scale": 7,
    "use_lora_model": None,
}  # fmt: skip
EASY_LABELS = {
    "Prompt": "a cat", "Negative Prompt": "dog", "Seed": "1", "Stable Diffusion model": "sd-v1-4", "Clip Skip": "True",
    "Sampler": "euler_a", "Width": "512", "Height": "768", "Steps": "20", "Guidance Scale": "7", "LoRA model": "None",
}  # fmt: skip


@pytest.mark.parametrize("texts", [EASY_LABELS, {k: str(v) for k, v in EASY.items()}, {"UserComment": EASY}])
def test_easy_diffusion(texts):
    found, warned = read(**texts)
    assert found == {**CAT, **SIZE, "sampler": "euler_ancestral", "clip_skip": "a1111:2"}
    assert "Easy Diffusion: how Easy Diffusion's seeds" in warned and "LoRA" not in warned


def test_easy_diffusion_from_a_picture():
    for texts in ({**EASY_LABELS, "Prompt Strength": "0.5"}, {"UserComment": {**EASY, "prompt_strength": 0.5}}):
        with pytest.raises(ValueError, match="Easy Diffusion: the picture is made from another"):
            read(**texts)


def test_draw_things():
    told = {"c": "a cat", "uc": "dog", "sampler": "DPM++ 2M Karras", "scale": 7, "seed": 1, "size": "512x768"}
    told |= {"steps": 20, "strength": 1, "model": "sd_v1.5_f16.ckpt", "v2": {}}
    found, warned = read(XMP=told)
    assert found == {**CAT, **SIZE, "sampler": "dpmpp_2m", "schedule": "karras"} and "noise of its own" in warned


def test_a_program_that_is_not_known():
    with pytest.raises(ValueError, match="JSON of a program that is not known here; read are those of A1111, Forge"):
        read(parameters={"what": "ever"})
    with pytest.raises(ValueError, match="holds no settings, and only texts .*Title, Software"):
        read(Title="AI", Software="Paint")


def test_a_prompt_may_begin_with_a_brace():
    found, _ = read(parameters="{a|b} cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 512x768")
    assert found["prompt"] == "{a|b} cat" and found["steps"] == 20


# Hostile ------------------------------------------------------

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30),
    st.sampled_from([10**400, 1e300]), st.floats(), st.text(max_size=8), st.just("1"),
    st.lists(st.integers(0, 9), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
TOLD = {
    "SwarmUI": (SWARM, lambda told: {"parameters": {"sui_image_params": told}}),
    "Fooocus": (FOOOCUS, lambda told: {"parameters": told}),
    "InvokeAI": (INVOKE, lambda told: {"invokeai_metadata": told}),
    "Easy Diffusion": (EASY, lambda told: {"UserComment": told}),
    "ComfyUI": (GRAPH["3"]["inputs"], lambda told: {"prompt": graph({}, **told)}),
    "graph": (GRAPH, lambda told: {"prompt": told}),
}


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(TOLD)), st.data())
def test_whatever_a_field_holds(program, data):
    """Settings of which `generate` can make something, or one ValueError."""
    told, wrapped = TOLD[program]
    name = data.draw(st.sampled_from(sorted(told)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = sdjax.read_settings(image(**wrapped({**told, name: data.draw(ODD)})))
        except ValueError as error:
            assert len(str(error)) < 1000
            return
    assert isinstance(found["prompt"], str) and found["sampler"] in {*SAMPLERS, "dpm_adaptive"}
    assert found.get("schedule") in (None, *SCHEDULES) and 0 <= found["seed"] < 2**64


def test_names_are_samplers_and_schedules_here():
    known = {*SAMPLERS, "dpm_adaptive"}
    assert {*names.COMFY_SAMPLERS.values(), *names.INVOKE.values()} <= known
    assert {one.sampler for one in names.COMFY_OPTIONS.values()} <= known
    assert set(names.COMFY_SCHEDULES.values()) <= set(SCHEDULES)
    assert names.comfy("uni_pc", "karras").settings() == {
        "sampler": "unipc", "schedule": "karras", "sampler_options": {"solver_order": 3, "solver_type": "bh1"},
    }  # fmt: skip
    assert names.comfy("dpmpp_2m_sde_heun_gpu").settings()["sampler_options"] == {"solver_type": "heun"}
    assert names.invoke("kdpm_2_a_k").settings() == {"sampler": "dpm2_ancestral", "schedule": "karras"}
    assert names.comfy("euler", "gits") is names.comfy("seeds_2") is names.invoke("nobody") is names.other("") is None
