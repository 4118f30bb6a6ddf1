"""``python -m backends.engine [NICENESS]``: the child process. Started by `backends.engine.client`."""

from backends.engine.child import main

main()
