"""The app: what people see and type into."""

import os

# Textual gathers changes for a frame; a key that just misses one waits for the next. Frames of 8 ms instead of 16 halve
# what that adds to the echo of a key and cost nothing, since none is drawn without a change. Read when it is imported.
os.environ.setdefault("TEXTUAL_FPS", "120")
