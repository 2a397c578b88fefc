"""Celery's side of the system: other producers' messages, its control commands and their answers.

In come messages of any Celery producer, out of Redis or RabbitMQ, and control commands such as ``revoke``.
Out go jobs of the ledger, results where no job can be one, and answers to the commands.
Nothing here runs a model, and the API's own jobs do not pass through here.
"""
