"""What the engine, the monitor's thread and the downloads tell the screens, as Textual messages.

Text of answers isn't carried here: `AnswerNews` says that there is some, and the handler takes all that has gathered.
At hundreds of tokens a second a slow terminal then sees fewer, larger updates, never a growing queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

from backends.interface import ExpertMap, LoadProgress, LoadRequest, ModelInfo

if TYPE_CHECKING:
    from flashmoe.hub.downloads.views import JobView
    from flashmoe.monitor.sample import Sample


class EngineMessage(Message):
    """The engine did something: a load, a death, a notice."""


class MonitorMessage(Message):
    """Something for the monitor's panes."""


class LoadProgressed(EngineMessage):
    """The model that is being loaded got further."""

    def __init__(self, progress: LoadProgress) -> None:
        super().__init__()
        self.progress = progress


class LoadStarted(EngineMessage):
    """The engine started to load a model."""

    def __init__(self, request: LoadRequest) -> None:
        super().__init__()
        self.request = request


class ModelLoaded(EngineMessage):
    """A model is ready to answer."""

    def __init__(self, info: ModelInfo, request: LoadRequest) -> None:
        super().__init__()
        self.info = info
        self.request = request


class LoadFailed(EngineMessage):
    """A model could not be loaded, or loading was cancelled. `sentence` is for the user."""

    def __init__(self, code: str, sentence: str, request: LoadRequest) -> None:
        super().__init__()
        self.code = code
        self.sentence = sentence
        self.request = request


class AnswerNews(Message):
    """The answer `answer_id` has new text, progress or an end: `EngineController.take` hands it over."""

    def __init__(self, answer_id: str) -> None:
        super().__init__()
        self.answer_id = answer_id


class EngineDied(EngineMessage):
    """The engine's process is gone; the next question starts it again."""

    def __init__(self, sentence: str) -> None:
        super().__init__()
        self.sentence = sentence


class EngineNotice(EngineMessage):
    """Something the user should know though nothing failed."""

    def __init__(self, level: str, sentence: str) -> None:
        super().__init__()
        self.level = level
        self.sentence = sentence


class ExpertMapArrived(MonitorMessage):
    """The state of every expert now."""

    def __init__(self, expert_map: ExpertMap) -> None:
        super().__init__()
        self.expert_map = expert_map


class SampleTaken(MonitorMessage):
    """One look at the machine and the engine."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample


class DownloadNews(Message):
    """A download moved, paused, failed or ended."""

    def __init__(self, view: JobView) -> None:
        super().__init__()
        self.view = view
