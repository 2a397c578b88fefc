"""Processes of the operating system: how ours start, log and end.

``launch`` builds the command lines of our processes, ``guardian`` ends all that a pool process leaves behind,
``lifetime`` has signals, memory and deaths, ``logs`` the one form of our log lines, ``procfile`` finds the Procfile.
Nothing here knows jobs, Redis or Celery.
"""
