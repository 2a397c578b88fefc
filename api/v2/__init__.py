"""The Open Inference Protocol, version 2, over the same jobs.

In come inference requests in JSON or binary (``requests``, ``tensors``); ``columns`` maps tensors to the fields of a
plugin's models, a row of the batch dimension to a job. Out go tensors (``routes``) and metadata (``model_info``).
"""
