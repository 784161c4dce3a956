"""Files that survive a kill: written whole, CSV for spreadsheets, YAML of unknown origin, output folders.

In: paths and text.
Out: files, or one line that says why not.
Uses: nothing of vtc.
"""
