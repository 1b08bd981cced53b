"""The image encoder of image-variation models: what a picture is told as, in place of a text."""

from dataclasses import dataclass

from sdjax.config import ClipVisionConfig, ConfigError, DepthConfig
from sdjax.images.processor import Processor


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """An image encoder and what is done to a picture before it. Raises ConfigError where the two do not fit."""

    config: ClipVisionConfig
    processor: Processor

    def __post_init__(self) -> None:
        side, crop = self.config.image_size, self.processor.crop or self.processor.size
        if crop is None or {*crop} != {side} or (self.processor.crop is None and len(crop) == 1):
            raise ConfigError(
                f"feature_extractor/preprocessor_config.json makes pictures of {crop} for an image encoder of {side} x "
                f"{side} pixels: they are not of one checkpoint"
            )


@dataclass(frozen=True, eq=False)
class DepthEstimator:
    """A depth estimator and what is done to a picture before it."""

    config: DepthConfig
    processor: Processor
