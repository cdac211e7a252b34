"""The local stack: real servers and all workers as child processes of one supervisor.

`supervisor.Stack` starts them in order, keeps them running and stops them in the reverse order;
`control` is what the command line needs from another process: start detached, stop, status.
"""
