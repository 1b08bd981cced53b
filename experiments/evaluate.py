"""How far the pictures of one folder are from those of another, and from their captions.

    python -m experiments.evaluate --pictures=made --real=photos --clip=runs/clip/clip
    python -m experiments.evaluate --pictures=made --real=coco.npz --inception=pt_inception.safetensors
    python -m experiments.evaluate --real=photos --clip=.. --save_statistics=photos.npz
    python -m experiments.evaluate --pictures=made --clip=.. --tokenizer=..          captions beside the pictures

By the features of a CLIP in hand (a folder of transformers' CLIPModel, as `experiments.train_clip` writes) or of
Inception-v3 (pytorch-fid's weights, converted to .safetensors): the Frechet distance, and of two folders the kernel
distance, precision and recall. Where the pictures have captions and --tokenizer is given: the CLIP score, and PickScore
where the CLIP is PickScore's. Distances of other features, counts or resizers are not to be compared: each is said.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from experiments import _cli
from sdjax.images.read import open_bytes, read_image
from sdjax.text.tokens import Tokenizer
from sdjax.train.data import sources
from sdjax.train.data.record import Found
from sdjax.train.evaluation.features import ClipFeatures, Features, InceptionFeatures
from sdjax.train.evaluation.frechet import frechet_distance
from sdjax.train.evaluation.kernel import kernel_distance
from sdjax.train.evaluation.neighbours import precision_recall
from sdjax.train.evaluation.resizing import RESIZERS
from sdjax.train.evaluation.scores import clip_scores, cosines, pick_scores
from sdjax.train.evaluation.statistics import Statistics
from sdjax.train.methods.clip import Clip, read_clip

FLAGS = flags.FLAGS
FEW = 2000  # pictures, below which a Frechet distance is mostly its bias


def define_flags() -> None:
    flags.DEFINE_string("pictures", None, "What is judged: a folder, or shards or parquet files in one.")
    flags.DEFINE_string("real", None, "What it is compared with: the same, or a file of statistics (.npz).")
    flags.DEFINE_string("clip", None, "Features: folder of a CLIP, transformers' CLIPModel.")
    flags.DEFINE_string("inception", None, "Features: pytorch-fid's Inception weights, .safetensors.")
    flags.DEFINE_enum("resizer", "clean", list(RESIZERS), "For Inception; see sdjax/train/evaluation/resizing.py.")
    flags.DEFINE_string("tokenizer", None, "Folder of the CLIP's tokenizer: scores of the pictures' captions.")
    flags.DEFINE_string("save_statistics", None, "File to write those of --real to, or without it of --pictures.")
    flags.DEFINE_integer("subsets", 100, "Of the kernel distance.", lower_bound=1)
    flags.DEFINE_integer("subset_size", 1000, "Pictures in each.", lower_bound=2)
    flags.DEFINE_integer("batch", 16, "Pictures at once.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the subsets.", lower_bound=0)


def images(found: Found) -> Iterator[Image.Image]:
    """The pictures, one by one. Raises ValueError naming one that cannot be read."""
    if found.rejects:
        raise ValueError(f"{found.rejects[0].name}: {found.rejects[0].reason}; take it out, or convert it")
    for record in found.records:
        yield read_image(open_bytes(record.read(), record.name), record.name)


def network() -> tuple[Features, Clip | None]:
    """The features that the flags ask for, and the CLIP that they come from. Raises ValueError."""
    if (FLAGS.clip is None) == (FLAGS.inception is None):
        raise ValueError("give --clip or --inception, one of them: what the pictures are compared by")
    if FLAGS.inception is not None:
        return InceptionFeatures.read(FLAGS.inception, FLAGS.resizer), None
    clip = read_clip(FLAGS.clip)
    return ClipFeatures(clip.vision, clip.params["image_encoder"]), clip


def main() -> None:
    if FLAGS.pictures is None and (FLAGS.real is None or FLAGS.save_statistics is None):
        raise ValueError("--pictures must be given; or --real and --save_statistics, to keep what it is compared with")
    if FLAGS.tokenizer is not None and (FLAGS.clip is None or FLAGS.pictures is None):
        raise ValueError("--tokenizer is for the scores of --pictures by --clip; give both")
    kept = FLAGS.real is not None and FLAGS.real.endswith(".npz")
    if kept and FLAGS.save_statistics:
        raise ValueError("--real is a file of statistics already; --save_statistics would only copy it")
    statistics = Statistics.read(FLAGS.real) if kept else None
    judged = None if FLAGS.pictures is None else sources.find(FLAGS.pictures, caption="")
    others = None if kept or FLAGS.real is None else sources.find(FLAGS.real, caption="")
    features, clip = network()
    print(f"features: {features.name}")
    made = None if judged is None else features(images(judged), FLAGS.batch)
    real = None if others is None else features(images(others), FLAGS.batch)
    if FLAGS.save_statistics:
        chosen = made if real is None else real
        assert chosen is not None
        print(f"statistics of {len(chosen)} pictures: {Statistics.of(chosen).save(Path(FLAGS.save_statistics))}")
    if made is not None and (real is not None or statistics is not None):
        compare(made, real, statistics)
    if clip is not None and judged is not None and FLAGS.tokenizer is not None:
        score(clip, judged)


def compare(made: np.ndarray, real: np.ndarray | None, statistics: Statistics | None) -> None:
    """Prints the distances."""
    statistics = statistics if real is None else Statistics.of(real)
    assert statistics is not None
    count = statistics.count
    frechet = frechet_distance(Statistics.of(made), statistics)
    print(f"Frechet distance      {frechet:.4f}  ({len(made)} and {count or '?'} pictures)")
    if min(len(made), count or len(made)) < FEW:
        print("    of so few pictures it is biased upwards: compare it with others of the same counts only")
    if real is None:
        return
    kernel = kernel_distance(made, real, FLAGS.subsets, FLAGS.subset_size, FLAGS.seed)
    drawn = f"({FLAGS.subsets} subsets of {kernel.size})"
    print(f"kernel distance       {kernel.mean:.6f} +- {kernel.deviation:.6f}  {drawn}")
    found = precision_recall(real, made)
    print(f"precision, recall     {found.precision:.4f}, {found.recall:.4f}  (3 neighbours)")


def score(clip: Clip, judged: Found) -> None:
    """Prints how well the pictures fit their captions. Raises ValueError where one has none."""
    if bare := [record.name for record in judged.records if not record.captions[0]]:
        raise ValueError(f"{bare[0]} has no caption, nor have {len(bare) - 1} others; leave --tokenizer out")
    texts = [record.captions[0] for record in judged.records]
    found = cosines(clip, Tokenizer.load(FLAGS.tokenizer), images(judged), texts, FLAGS.batch)
    fit, pick = clip_scores(found), pick_scores(clip, found)
    error = fit.std() / np.sqrt(len(fit))
    print(f"CLIP score            {fit.mean():.3f} +- {error:.3f}  (100 max(0, cos); cos {found.mean():.4f})")
    print(f"times the CLIP's own scale  {pick.mean():.3f}  (PickScore, where it is PickScore's)")


if __name__ == "__main__":
    _cli.run(main, define_flags)
