"""How long a test waits for what is to come, in seconds.

A wait says nothing of how long something takes: it ends a test that hangs. Where a time is promised the test says so
itself. It is more than the minute for which the absence of what a lost worker may have sent proves nothing.
"""

PATIENCE = 180.0
