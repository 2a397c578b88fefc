"""Files over HTTP: uploads, downloads, links.

In come bodies of any size (``uploads``: raw or a form), which are written to the storage as they arrive.
Out go a file's record, its bytes (whole or in ranges) and signed links.
"""
