"""Every environment variable that the program reads or sets, with what it does: for the reference and `paths`."""

from __future__ import annotations

from typing import NamedTuple


class Variable(NamedTuple):
    """One variable. `group` is the heading it stands under in the reference."""

    name: str
    meaning: str
    group: str


OURS, OTHERS = "flashmoe-tui", "Others that are honoured"

VARIABLES: tuple[Variable, ...] = (
    Variable("FLASHMOE_HOME", "One folder for everything: configuration, chats, models, caches, logs, sockets.", OURS),
    Variable("FLASHMOE_CONFIG", "The configuration file to read instead of config.yaml in the config folder.", OURS),
    Variable("FLASHMOE_MODELS", "The folder that downloads go to and that the library looks in first.", OURS),
    Variable("FLASHMOE_DEBUG", "Any value: unexpected errors print their traceback instead of going to the log.", OURS),
    Variable("FLASHMOE_<SECTION>__<FIELD>", "Overrides a setting, for instance FLASHMOE_BACKEND__RAM=6.", OURS),
    Variable("FLASHMOE_REMOTE_KEY", "The API key sent to whatever server is named as MODEL.", OURS),
    Variable("OPENAI_API_KEY", "The API key sent to api.openai.com, or to the server of OPENAI_BASE_URL instead; to no "
             "other. FLASHMOE_REMOTE_KEY wins over it.", OTHERS),
    Variable("OPENAI_BASE_URL, OPENAI_API_BASE", "The server that OPENAI_API_KEY belongs to.", OTHERS),
    Variable("HF_TOKEN", "The token for gated and private repositories (huggingface_hub's own variable).", OTHERS),
    Variable("HF_ENDPOINT", "Another hub, for instance a mirror; your token is sent there, nowhere else.", OTHERS),
    Variable("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1: no token is sent at all.", OTHERS),
    Variable("HF_HUB_OFFLINE", "1: the hub is never contacted.", OTHERS),
    Variable("HF_HOME", "huggingface_hub's folder; models in its cache are listed by the library.", OTHERS),
    Variable("HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "Proxies for the hub and for remote servers.", OTHERS),
    Variable("OMP_WAIT_POLICY, GOMP_SPINCOUNT", "How llama.cpp's threads wait; unset, GOMP_SPINCOUNT is 1000.", OTHERS),
    Variable("XDG_CONFIG_HOME, XDG_DATA_HOME, XDG_CACHE_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR",
             "Where configuration, data, caches, logs and sockets go by default.", OTHERS),
    Variable("NO_COLOR, COLORTERM, TERM", "What colours the terminal can show; NO_COLOR turns them off.", OTHERS),
    Variable("SSH_CONNECTION, SSH_CLIENT, SSH_TTY", "Present over SSH: the app then runs calmly.", OTHERS),
    Variable("TMUX, STY", "Present within tmux and screen: the terminal behind them is another one.", OTHERS),
    Variable("TEXTUAL_FPS", "The most frames a second that the app draws.", OTHERS),
    Variable("VISUAL, EDITOR", "The editor that the composer's editor key opens.", OTHERS),
)  # fmt: skip
