"""The terminal: the console, progress bars with the time left, and checks of options that jobs share.

In: what a job says.
Out: lines on the screen.
Uses: nothing of vtc.
"""
