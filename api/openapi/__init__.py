"""The OpenAPI document.

In come the routes' descriptions, the plugins' JSON Schemas and the settings.
Out goes one document (``document.build_document``), from which clients can be generated.
"""
