from hypothesis import settings

# The same examples on every machine, and no time limit that a busy one would miss.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
