"""All arguments of a call, by topic."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sdjax.request.arguments.adapters import AdapterArguments
from sdjax.request.arguments.batch import Batch
from sdjax.request.arguments.control import ControlArguments
from sdjax.request.arguments.guidance import GuidanceArguments
from sdjax.request.arguments.handoff import Handoff
from sdjax.request.arguments.images import ImageArguments
from sdjax.request.arguments.monitoring import Monitoring
from sdjax.request.arguments.prompting import Prompting
from sdjax.request.arguments.sampling import Sampling
from sdjax.request.arguments.size_conditioning import SizeConditioning
from sdjax.request.arguments.topic import ALWAYS, Declaration, Topic


@dataclass(frozen=True)
class Arguments:
    """What `generate` was given, in topics; or the same checked, as settings have it."""

    prompting: Prompting = Prompting()
    sampling: Sampling = Sampling()
    guidance: GuidanceArguments = GuidanceArguments()
    adapters: AdapterArguments = AdapterArguments()
    control: ControlArguments = ControlArguments()
    batch: Batch = Batch()
    monitoring: Monitoring = Monitoring()
    handoff: Handoff = Handoff()
    images: ImageArguments = ImageArguments()
    sizes: SizeConditioning = SizeConditioning()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Arguments":
        """Of a call's arguments by name; those that are missing are as usual. Raises ValueError for a misplaced key."""
        topics: dict[str, Any] = {name: kind.of(given) for name, kind in TOPICS.items()}
        return cls(**topics)

    @property
    def topics(self) -> tuple[Topic, ...]:
        """Each of them, in the order in which settings are told."""
        return tuple(getattr(self, name) for name in TOPICS)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Every argument's name and value."""
        return (pair for topic in self.topics for pair in topic.items())

    def settings(self) -> dict[str, Any]:
        """Of checked arguments, those that make the same pictures again; first those that every picture has."""
        told = [pair for topic in self.topics for pair in topic.settings().items()]
        return dict(sorted(told, key=lambda pair: DECLARED[pair[0]].told != ALWAYS))


TOPICS: dict[str, type[Topic]] = {one.name: type(getattr(Arguments, one.name)) for one in fields(Arguments)}
DECLARED: dict[str, Declaration] = {
    name: one for topic in TOPICS.values() for name, one in topic.declarations().items()
}
DEFAULTS: dict[str, Any] = {name: value for topic in TOPICS.values() for name, value in topic.defaults().items()}
