"""The system on one machine: the private Redis, workers that are started again, everything by one command.

In come a Procfile or the built-in lines (``up``) and names of services (``supervisor``).
Out go running processes, which all end with the command that started them. No server needs this room.
"""
