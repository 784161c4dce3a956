"""Pictures, videos and their frames, read when they are needed.

In: files of others.
Out: pictures, frames with their times.
Uses: nothing of vtc.
"""
