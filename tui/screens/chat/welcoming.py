"""What the main screen says where there is no chat yet."""

from __future__ import annotations

from flashmoe import paths
from flashmoe.remote.address import host_of
from flashmoe.text_safety import visible_line
from tui.engine.controller import EngineController
from tui.keymap import Keymap
from tui.widgets.welcome import Welcome


def short_name(path: str) -> str:
    """A model's name from its path, for sentences."""
    if path == str(paths.guide_model()):
        return "the guide"
    if path.startswith(("http://", "https://")):
        return visible_line(host_of(path) or path, 50)
    return visible_line(path.rsplit("/", 1)[-1], 50)


def show_welcome(welcome: Welcome, controller: EngineController, keymap: Keymap) -> None:
    """Says what to do next: choose a model, ask the guide, or write."""
    key, request = keymap.display, controller.request
    if request is None:
        welcome.say(
            "Chat with Mixture-of-Experts models larger than your memory.\n"
            f"Press {key('chat.models')} to choose a model.",
            f"{key('app.palette')} all commands   {key('app.help')} help",
            guide=False,
        )
    elif request.path == str(paths.guide_model()):
        welcome.say(
            "This is the guide, a small model that knows this program.\nAsk it something:",
            f"Tab and Enter pick one, or type your own   {key('chat.models')} other models",
            guide=True,
        )
    else:
        name = controller.model.name if controller.model is not None else short_name(request.path)
        welcome.say(
            f"{visible_line(name, 50)}\nType below; {key('composer.send')} sends.",
            f"{key('chat.settings')} system prompt and sampling   {key('chat.attach')} attach a file   "
            f"{key('chat.chats')} earlier chats",
            guide=False,
        )
