"""The flags, and a file of them.

    rank = 8                        # a .py file: names and plain values, which are read and never run
    caption_dropout = 0.05
    {"rank": 8, "caption_dropout": 0.05}                                        or a .json file

What the command line says goes before what the file says.
"""

import ast
import json
import math
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _files
from sdjax.core.errors import unknown
from sdjax.train import optimisers, rates
from sdjax.train.architecture import PREDICTIONS
from sdjax.train.losses import errors, weightings

FLAGS = flags.FLAGS
BUCKETS = ("square", "novelai", "kohya", "sdxl")
DENSITIES = ("uniform", "logit_normal", "later", "earlier")
DTYPES = ("float32", "bfloat16")
LARGEST = 1 << 20  # bytes of a file of flags
FREE = (  # what may change between one start of a run and the next
    "config", "distributed", "dry_run", "keep_newest", "limit", "model_revision", "out", "report_every", "save_seconds",
    "tensorboard", "validate_every", "validation_data", "validation_prompts", "validation_steps",
)  # fmt: skip


def define(methods: tuple[str, ...]) -> None:
    """Defines all flags."""
    _run(methods)
    _data()
    _loss()
    _optimiser()
    _methods()
    _told()


def read_config() -> None:
    """Takes what the file of --config says for flags that the command line does not name.

    Raises ValueError for a file that is none, a name that is no flag and a value that is none for it.
    """
    if not FLAGS.config:
        return
    for name, value in _values(Path(FLAGS.config)).items():
        known = sorted(_names())
        if name not in known:
            raise ValueError(unknown(f"{FLAGS.config}: there is no flag {name!r}", name, known))
        flag = FLAGS[name]
        if flag.present:
            continue
        try:
            flag.value = value if value is None else flag.parser.parse(_text(value))
        except ValueError as error:
            raise ValueError(f"{FLAGS.config}: {name} = {value!r}: {error}") from None


def settings() -> dict[str, Any]:
    """What a run is, as its folder keeps it: every flag but those that say where, how long, and what is told of it."""
    kept = {name: FLAGS[name].value for name in _names() if name not in FREE}
    if FLAGS.rate == "constant":  # a run at one rate may be made longer
        kept.pop("steps")
    return kept


def check() -> None:
    """Raises ValueError for flags that are missing or out of range, whatever the method."""
    for name in ("method", "out"):
        if not getattr(FLAGS, name):
            raise ValueError(f"--{name} is missing; see --help")
    if Path(FLAGS.out).exists() and not Path(FLAGS.out).is_dir():
        raise ValueError(f"--out={FLAGS.out} is a file; name a folder, which the run makes")
    for name in ("learning_rate", "limit", "ema"):
        value = getattr(FLAGS, name)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"--{name} must be a finite number, not {value}")


def _names() -> set[str]:
    """The flags of this program, without those that come with absl and with jax."""
    return {flag.name for module, own in FLAGS.flags_by_module_dict().items() if module == __name__ for flag in own}


def _values(path: Path) -> dict[str, Any]:
    text = _files.read(path, f"--config={path}", LARGEST).decode("utf-8", "replace")
    if path.suffix == ".json":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path} must hold an object of names and values, not a {type(found).__name__}")
        return found
    if path.suffix != ".py":
        raise ValueError(f"{path}: a file of flags ends with .py or .json")
    return _assigned(text, path)


def _assigned(text: str, path: Path) -> dict[str, Any]:
    """The names and literals of a file of assignments, of which nothing is run."""
    made: dict[str, Any] = {}
    try:
        lines = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is no Python: {error}") from None
    for line in lines:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                try:
                    made[name] = ast.literal_eval(value)
                except (ValueError, TypeError, RecursionError):
                    raise ValueError(f"{path}, line {line.lineno}: {name} must be a plain value") from None
            case ast.Expr(value=ast.Constant(value=str())):
                pass  # its docstring
            case _:
                raise ValueError(f"{path}, line {line.lineno}: only lines of `name = value` are read, and none is run")
    return made


def _text(value: Any) -> Any:
    """A value as the command line would say it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _run(methods: tuple[str, ...]) -> None:
    flags.DEFINE_enum("method", None, methods, "What learns, and from what.")
    flags.DEFINE_string("model", "shapes", "A checkpoint: a folder, a file, a Hub id, or shapes.")
    flags.DEFINE_string("model_revision", "main", "Branch, tag or commit, where --model is a Hub id.")
    flags.DEFINE_string("out", None, "Folder of the run; started again, it goes on where it was.")
    flags.DEFINE_string("config", None, "A .py or .json file of flags; the command line goes before it.")
    flags.DEFINE_integer("steps", 1000, "Updates of the parameters.", lower_bound=1)
    flags.DEFINE_integer("batch", 4, "Pictures in an update, on all devices together.", lower_bound=1)
    flags.DEFINE_integer("accumulate", 1, "In how many pieces, one after the other, a batch is taken.", lower_bound=1)
    flags.DEFINE_integer(
        "seed", 0, "Seed of the order, the crops, the noise and what is drawn at the start.", lower_bound=0
    )
    flags.DEFINE_enum("dtype", "float32", DTYPES, "What the U-Net computes in; what learns is float32.")
    flags.DEFINE_bool("remat", False, "Compute the U-Net's blocks again on the way back: less memory, more time.")
    flags.DEFINE_integer("fsdp", 1, "Over how many devices the state is cut; the rest hold copies.", lower_bound=1)
    flags.DEFINE_string(
        "distributed",
        None,
        "One of several processes: auto (clusters that JAX knows), or address:port,processes,process.",
    )
    flags.DEFINE_bool("dry_run", False, "Say what it takes, show what the data looks like, and end.")


def _data() -> None:
    flags.DEFINE_string("data", None, "Pictures with captions: a folder, webdataset's .tar files, parquet files.")
    flags.DEFINE_string("caption", None, "The caption of --data's pictures that have none.")
    flags.DEFINE_string("trigger", "", "A word put before every caption.")
    flags.DEFINE_float("caption_dropout", 0.1, "Part of the turns in which the caption is left out.", 0.0, 1.0)
    flags.DEFINE_bool("shuffle_tags", False, "Whether what stands between commas comes in another order every turn.")
    flags.DEFINE_integer(
        "keep_tags", 0, "With --shuffle_tags: how many of a caption's first tags stay where they are.", lower_bound=0
    )
    flags.DEFINE_integer(
        "resolution", None, "Pixels of a side that pictures are brought to; default: the model's own.", lower_bound=8
    )
    flags.DEFINE_enum("buckets", "square", BUCKETS, "The sizes that pictures are brought to.")
    flags.DEFINE_bool("random_crop", False, "Crops from anywhere, another each time; else from the middle.")
    flags.DEFINE_bool("flip", False, "Flip every picture left to right every second time.")
    flags.DEFINE_string("ground", "white", "The colour under transparent parts.")
    flags.DEFINE_bool("opaque_only", False, "Leave transparent parts out of the loss.")
    flags.DEFINE_string("masks", None, "Pictures of the same names, white where the error counts.")
    flags.DEFINE_bool("cache", True, "Encode pictures and captions once, where both stay the same.")
    flags.DEFINE_string("class_data", None, "Pictures of the class, so that it is not forgotten (DreamBooth).")
    flags.DEFINE_string("class_caption", None, "The caption of --class_data's pictures that have none.")
    flags.DEFINE_integer("class_batch", None, "So many of a batch are of the class; default: half.", lower_bound=1)
    flags.DEFINE_bool("preserve", False, "Pictures of the class are answered as the model did before, noise for noise.")
    flags.DEFINE_float("prior", 1.0, "How much the class counts beside the instances.", lower_bound=0.0)


def _loss() -> None:
    flags.DEFINE_enum("prediction", None, PREDICTIONS, "What the U-Net answers; default: what it was trained with.")
    flags.DEFINE_bool("zero_terminal_snr", False, "Rescale the levels so that the last holds no signal.")
    flags.DEFINE_enum("weighting", "uniform", list(weightings.KINDS), "How much an error counts at its level.")
    flags.DEFINE_float("gamma", None, "The weighting's number; default: the published one.")
    flags.DEFINE_enum("error", "squared", errors.KINDS, "What is made of a difference.")
    flags.DEFINE_float("huber_c", 0.1, "The width of --error=huber and smooth_l1.")
    flags.DEFINE_float("offset_noise", 0.0, "How much of one draw for each channel is in the noise.")
    flags.DEFINE_integer("pyramid_noise", 0, "So many coarser levels of noise.")
    flags.DEFINE_float("input_perturbation", 0.0, "How much noise the network is shown and not asked for.")
    flags.DEFINE_enum("timesteps", "uniform", DENSITIES, "Which timesteps come oftener.")
    flags.DEFINE_bool("stratified", True, "Spread a batch's timesteps evenly over all timesteps.")


def _optimiser() -> None:
    flags.DEFINE_enum("optimiser", "adamw", list(optimisers.USUAL), "How parameters follow their gradient.")
    flags.DEFINE_float(
        "learning_rate",
        None,
        "Peak rate; default: the method's usual one (lora 1e-4, full 1e-5, textual_inversion 5e-3).",
    )
    flags.DEFINE_enum("rate", "constant", rates.KINDS, "How the rate falls.")
    flags.DEFINE_integer("warmup", 0, "Steps in which the learning rate rises from 0.", lower_bound=0)
    flags.DEFINE_float("weight_decay", None, "Default: the optimiser's own.", lower_bound=0.0)
    flags.DEFINE_float("clip", 1.0, "The most that a gradient's norm may be; 0: however long.", lower_bound=0.0)
    flags.DEFINE_float("ema", None, "Decay of the averaged parameters, which are what is written; default: none.")
    flags.DEFINE_list("power_ema", [], "Relative widths of power-function averages, as 0.05,0.1; snapshots are kept.")


def _methods() -> None:
    flags.DEFINE_integer("rank", 16, "Rank of every factor (lora, dora, loha, lokr, lcm, dpo, reward).", lower_bound=1)
    flags.DEFINE_float("alpha", None, "A change counts alpha / rank; default: the rank.")
    flags.DEFINE_string("layers", "attention", "Of the U-Net: attention, transformers, convolutions, or a pattern.")
    flags.DEFINE_string(
        "text_layers", None, "Which layers of the text encoders learn, as --layers says; default: none."
    )
    flags.DEFINE_list("rules", None, "full: what learns, as patterns in parameters' paths; default: the U-Net.")
    flags.DEFINE_string("word", None, "textual_inversion: the new word, as it stands in the captions.")
    flags.DEFINE_list("word_start", None, "textual_inversion: for each vector the words whose mean it begins as (a+b).")
    flags.DEFINE_list("structure", ["1", "2", "1"], "hypernetwork: widths of its layers, of the input's.")
    flags.DEFINE_string("activation", "relu", "hypernetwork: between its layers.")
    flags.DEFINE_string("maps", None, "controlnet: what it is shown, pictures of the same names.")
    flags.DEFINE_list("control_widths", ["16", "32", "96", "256"], "controlnet: of its convolutions over the map.")
    flags.DEFINE_string("start", None, "controlnet, ip_adapter: a trained one to go on from.")
    flags.DEFINE_string("image_encoder", None, "ip_adapter: folder of the image encoder that it looks through.")
    flags.DEFINE_integer("image_tokens", 4, "ip_adapter: what a picture becomes.", lower_bound=1)
    flags.DEFINE_float(
        "image_dropout", 0.05, "ip_adapter: part without picture, without caption, without both.", 0, 0.3
    )
    flags.DEFINE_integer("solver_steps", 50, "lcm: of the teacher's solver.", lower_bound=2)
    flags.DEFINE_list("guidance_range", ["5", "15"], "lcm: between which w, a guidance scale less one, is drawn.")
    flags.DEFINE_string("rejected", None, "dpo: of each pair the picture that was not preferred, by the same name.")
    flags.DEFINE_float("beta", 2500.0, "dpo: how far the model may go from where it was.")
    flags.DEFINE_string("reward", None, "reward: colour:R,G,B, how near a mean colour is; @x0,y0,x1,y1: of a box.")
    flags.DEFINE_string("prompts", None, "reward: a file of them, one a line.")
    flags.DEFINE_string("sampler", "ddim", "reward: how pictures are made.")
    flags.DEFINE_integer("sampler_steps", 10, "reward: in how many steps.", lower_bound=1)
    flags.DEFINE_integer("last_rows", 2, "reward: in how many of the last the gradient is taken.", lower_bound=1)
    flags.DEFINE_float("guidance_scale", 1.0, "reward: of the pictures that are scored.", lower_bound=0.0)


def _told() -> None:
    flags.DEFINE_integer("report_every", 50, "Steps between two lines.", lower_bound=1)
    flags.DEFINE_float(
        "save_seconds", 60.0, "Seconds between two saved states; a killed run goes on from the last.", lower_bound=0.0
    )
    flags.DEFINE_integer("keep_newest", 2, "How many of the newest saved states stay.", lower_bound=1)
    flags.DEFINE_float("limit", None, "Seconds after which it saves and stops.")
    flags.DEFINE_bool("tensorboard", False, "Event files beside metrics.csv.")
    flags.DEFINE_integer(
        "validate_every", 0, "Steps between two looks at the averaged parameters; 0: none.", lower_bound=0
    )
    flags.DEFINE_string("validation_data", None, "Pictures for the loss at fixed noise; default: some of --data.")
    flags.DEFINE_string(
        "validation_prompts", None, "Prompts of pictures painted on the way and at the end, parted by |."
    )
    flags.DEFINE_integer("validation_steps", 20, "Sampler steps of --validation_prompts' pictures.", lower_bound=1)
