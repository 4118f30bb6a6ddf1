"""``python -m backends.engine``: the child process. Started by `backends.engine.client`, of no use by hand."""

from backends.engine.child import main

main()
