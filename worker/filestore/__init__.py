"""Files of inputs and outputs: large or binary values outside a job's JSON.

Input: uploads (``async_store``, for the API), URLs (``fetch``) and files that a plugin returns (``output_files``).
``storage`` stores the bytes in a folder or in any file system of fsspec. ``files.lua`` stores the records and decides
which file may be removed (``holds``). Output: local paths for a batch (``batch_files``), and downloads.
"""
