"""The OpenAPI document.

In come the routes, each with its own description (``api.operations``), and the plugins' JSON Schemas. Out goes one
document (``document.build_document``), from which clients can be generated.
"""
