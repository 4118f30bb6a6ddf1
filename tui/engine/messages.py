"""What the engine controller tells the screens, as Textual messages.

Text of answers isn't carried here: `AnswerNews` says that there is some, and the handler takes all that has gathered.
At hundreds of tokens a second a slow terminal then sees fewer, larger updates, never a growing queue.
"""

from __future__ import annotations

from textual.message import Message

from backends.interface import ExpertMap, LoadProgress, LoadRequest, ModelInfo, Telemetry


class LoadProgressed(Message):
    """The model that is being loaded got further."""

    def __init__(self, progress: LoadProgress) -> None:
        super().__init__()
        self.progress = progress


class LoadStarted(Message):
    """The engine started to load a model."""

    def __init__(self, request: LoadRequest) -> None:
        super().__init__()
        self.request = request


class ModelLoaded(Message):
    """A model is ready to answer."""

    def __init__(self, info: ModelInfo, request: LoadRequest) -> None:
        super().__init__()
        self.info = info
        self.request = request


class LoadFailed(Message):
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


class EngineDied(Message):
    """The engine's process is gone; the next question starts it again."""

    def __init__(self, sentence: str) -> None:
        super().__init__()
        self.sentence = sentence


class EngineNotice(Message):
    """Something the user should know though nothing failed."""

    def __init__(self, level: str, sentence: str) -> None:
        super().__init__()
        self.level = level
        self.sentence = sentence


class TelemetryArrived(Message):
    """The engine's counters now."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__()
        self.telemetry = telemetry


class ExpertMapArrived(Message):
    """The state of every expert now."""

    def __init__(self, expert_map: ExpertMap) -> None:
        super().__init__()
        self.expert_map = expert_map
