"""Files of inputs and outputs: large or binary values that are no part of a job's JSON.

In come uploads (``async_store``, for the API), URLs (``fetch``) and files that a plugin returns (``output_files``).
``storage`` keeps the bytes in a folder or in any store of fsspec; ``files.lua`` keeps the records and decides which
file may be removed (``holds``). Out go local paths for a batch (``batch_files``) and downloads.
"""
